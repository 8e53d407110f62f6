//! What arrived at a server, for the client that asks how much of what it sent got through: what lies in the buffers of
//! sockets and proxies is many megabytes a connection, and was not carried yet.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::options::Options;

/// Often enough for a measurement, seldom enough to cost the server nothing.
const STEP: u64 = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// The server's end of the file `received=`.
pub(crate) struct Counter {
    file: Option<File>,
    total: u64,
    written: u64,
}

impl Counter {
    pub(crate) fn create(options: &Options) -> Result<Self> {
        let path: String = options.get("received", String::new())?;
        let file = match path.as_str() {
            "" => None,
            path => {
                let file = File::create(path).with_context(|| path.to_owned())?;
                file.write_all_at(&0_u64.to_ne_bytes(), 0)?;
                Some(file)
            }
        };
        Ok(Self {
            file,
            total: 0,
            written: 0,
        })
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.total += bytes;
        if let Some(file) = &self.file
            && self.total - self.written >= STEP
            && file.write_all_at(&self.total.to_ne_bytes(), 0).is_ok()
        {
            self.written = self.total;
        }
    }
}

/// The client's end.
pub(crate) struct Received(File);

impl Received {
    pub(crate) fn open(options: &Options) -> Result<Self> {
        let path: String = options.required("received")?;
        Ok(Self(File::open(&path).with_context(|| path)?))
    }

    pub(crate) fn bytes(&self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, 0)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Waits until so much arrived.
    pub(crate) fn reach(&self, bytes: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.bytes()? < bytes {
            ensure!(
                Instant::now() < deadline,
                "too little arrives: {} of {bytes} bytes",
                self.bytes()?
            );
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits until nothing more arrives: what is still under way would be in the way of who is measured next.
    pub(crate) fn settle(&self) -> Result<()> {
        const QUIET: Duration = Duration::from_millis(100);
        let deadline = Instant::now() + PATIENCE;
        let (mut last, mut since) = (self.bytes()?, Instant::now());
        while since.elapsed() < QUIET && Instant::now() < deadline {
            thread::sleep(QUIET / 10);
            let now = self.bytes()?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(())
    }
}
