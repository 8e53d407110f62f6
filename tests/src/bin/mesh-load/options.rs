//! `key=value` arguments.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};

pub(crate) struct Options(HashMap<String, String>);

impl Options {
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Self> {
        args.map(|arg| match arg.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(anyhow!("{arg:?} is not key=value")),
        })
        .collect::<Result<_>>()
        .map(Self)
    }

    pub(crate) fn get<T: FromStr>(&self, key: &str, default: T) -> Result<T> {
        match self.0.get(key) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| anyhow!("{key}={text}: not understood")),
        }
    }

    /// Numbers with commas between, and `A-B` for ranges.
    pub(crate) fn list(&self, key: &str) -> Result<Vec<u32>> {
        let text = self.0.get(key).map_or("", String::as_str);
        let mut all = Vec::new();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let number = |t: &str| t.parse::<u32>().with_context(|| format!("{key}={text}"));
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            all.extend(number(first)?..=number(last)?);
        }
        Ok(all)
    }

    /// The destinations: every port of `ports=` of the first address in `to=IP,IP...`, then of the next.
    pub(crate) fn destinations(&self) -> Result<Vec<SocketAddr>> {
        let to: String = self.required("to")?;
        let ports = self.list("ports")?;
        anyhow::ensure!(!ports.is_empty(), "ports= is missing");
        let mut all = Vec::new();
        for ip in to.split(',') {
            let ip: IpAddr = ip.parse().with_context(|| format!("to={ip}"))?;
            all.extend(ports.iter().map(|&port| SocketAddr::new(ip, port as u16)));
        }
        Ok(all)
    }

    pub(crate) fn destination(&self) -> Result<SocketAddr> {
        self.destinations()?
            .into_iter()
            .next()
            .context("ports= is missing")
    }

    pub(crate) fn required<T: FromStr>(&self, key: &str) -> Result<T> {
        let text = self
            .0
            .get(key)
            .with_context(|| format!("{key}= is missing"))?;
        text.parse()
            .map_err(|_| anyhow!("{key}={text}: not understood"))
    }

    fn seconds(&self, key: &str, default: f64) -> Result<Duration> {
        Ok(Duration::from_secs_f64(self.get(key, default)?))
    }

    /// Time that is measured.
    pub(crate) fn measured(&self) -> Result<Duration> {
        self.seconds("seconds", 1.0)
    }

    /// Time before it.
    pub(crate) fn warm_up(&self) -> Result<Duration> {
        self.seconds("warm", 0.3)
    }
}
