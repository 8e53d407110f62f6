//! Certificates, trust and tunnels, as the parts that hold them show them at a scrape.

use std::time::{SystemTime, UNIX_EPOCH};

use super::families::Families;

/// What a scrape shows of the node's identities.
#[derive(Clone, Debug, Default)]
pub struct IdentityGauges {
    pub certificates: Vec<CertificateGauge>,
    /// Name of the certificate authority.
    pub ca: String,
    /// Requests to it by outcome (`signed`, `unavailable` ...).
    pub ca_requests: Vec<(&'static str, u64)>,
    /// Ends of the roots that are trusted.
    pub roots: Vec<SystemTime>,
    /// `None`: no file of roots is configured.
    pub bundle: Option<FileGauge>,
    /// `None`: no revocation list is configured.
    pub crl: Option<FileGauge>,
    /// Certificates on the revocation lists.
    pub revoked: u64,
}

/// One identity of this node.
#[derive(Clone, Debug)]
pub struct CertificateGauge {
    /// `spiffe://...`
    pub identity: String,
    /// Begin and end of the certificate's validity; `None`: there is no certificate yet.
    pub validity: Option<(SystemTime, SystemTime)>,
    /// Requests for it that failed since the agent started.
    pub failures: u64,
}

/// A file that is read again when it changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileGauge {
    /// What it says now is in effect.
    pub ok: bool,
    /// Readings that failed since the agent started.
    pub errors: u64,
}

/// Tunnels of one direction.
#[derive(Clone, Debug)]
pub struct TunnelGauge {
    /// `outbound`: to other agents; `inbound`: from them.
    pub direction: &'static str,
    pub open: u64,
    /// Connections that they carry.
    pub streams: u64,
}

pub(super) fn encode(identity: &IdentityGauges, out: &mut Families<'_>) -> std::fmt::Result {
    let by_identity = |read: fn(&(SystemTime, SystemTime)) -> SystemTime| {
        identity.certificates.iter().filter_map(move |c| {
            let at = read(c.validity.as_ref()?);
            Some(([("identity", c.identity.clone())], epoch(at)))
        })
    };
    out.gauges(
        "mesh_certificate_expiry_timestamp_seconds",
        "End of the certificate's validity, since the epoch",
        by_identity(|(_, end)| *end),
    )?;
    out.gauges(
        "mesh_certificate_not_before_timestamp_seconds",
        "Begin of the certificate's validity, since the epoch",
        by_identity(|(begin, _)| *begin),
    )?;
    out.gauges(
        "mesh_certificates",
        "Identities of this node by state of their certificate",
        states(identity).map(|(state, n)| ([("state", state.to_owned())], n as f64)),
    )?;
    out.counters(
        "mesh_certificate_renewal_failures",
        "Requests for a certificate of this identity that failed",
        "identity",
        identity
            .certificates
            .iter()
            .map(|c| (c.identity.as_str(), c.failures)),
    )?;
    out.labelled_counters(
        "mesh_ca_requests",
        "Requests to the certificate authority, by outcome",
        identity
            .ca_requests
            .iter()
            .map(|(outcome, n)| ([("ca", identity.ca.as_str()), ("outcome", *outcome)], *n)),
    )?;
    out.gauge(
        "mesh_trust_roots",
        "Root certificates that are trusted",
        identity.roots.len() as f64,
    )?;
    out.gauges(
        "mesh_trust_root_expiry_timestamp_seconds",
        "End of the validity of the trusted root that ends first, since the epoch",
        identity.roots.iter().min().map(|end| ([], epoch(*end))),
    )?;
    let ok = |file: Option<FileGauge>| file.map(|f| ([], f64::from(u8::from(f.ok))));
    let errors = |file: Option<FileGauge>| file.map_or(0, |f| f.errors);
    out.gauges(
        "mesh_trust_bundle_last_reload_success",
        "1 if the newest trust bundle is in effect, 0 if it was refused and the last good one stays",
        ok(identity.bundle),
    )?;
    out.counter(
        "mesh_trust_bundle_errors",
        "Readings of the trust bundle that failed",
        errors(identity.bundle),
    )?;
    out.gauges(
        "mesh_crl_last_reload_success",
        "1 if the newest revocation list is in effect, 0 if it was refused and the last good one stays",
        ok(identity.crl),
    )?;
    out.gauges(
        "mesh_crl_revoked_certificates",
        "Certificates on the revocation list in effect",
        identity.crl.map(|_| ([], identity.revoked as f64)),
    )?;
    out.counter(
        "mesh_crl_errors",
        "Readings of the revocation list that failed",
        errors(identity.crl),
    )
}

/// `valid`, `expired` and `missing`, zeros too.
fn states(identity: &IdentityGauges) -> impl Iterator<Item = (&'static str, usize)> + '_ {
    let now = SystemTime::now();
    let state = move |c: &CertificateGauge| match c.validity {
        Some((_, end)) if end > now => "valid",
        Some(_) => "expired",
        None => "missing",
    };
    ["valid", "expired", "missing"].into_iter().map(move |s| {
        let n = identity.certificates.iter().filter(|c| state(c) == s);
        (s, n.count())
    })
}

pub(super) fn encode_tunnels(tunnels: &[TunnelGauge], out: &mut Families<'_>) -> std::fmt::Result {
    let by_direction = |read: fn(&TunnelGauge) -> u64| {
        tunnels
            .iter()
            .map(move |t| ([("direction", t.direction.to_owned())], read(t) as f64))
    };
    out.gauges(
        "mesh_tunnels_open",
        "Tunnels to and from other agents now open",
        by_direction(|t| t.open),
    )?;
    out.gauges(
        "mesh_tunnel_streams",
        "Connections that tunnels carry now",
        by_direction(|t| t.streams),
    )
}

fn epoch(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs() as f64)
}
