//! The record layer of TLS 1.3 (RFC 8446 section 5), with the keys that rustls has negotiated.
//!
//! rustls makes the handshake, keeps the sessions and derives new keys; only sealing and opening of records is done here,
//! with AWS-LC as it does it. Its own way copies each record into an allocation of its own, sending and receiving; see
//! docs/adr/0009-tunnel-io.md.

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use rustls::ConnectionTrafficSecrets;

/// Type, version, length.
pub(super) const HEADER: usize = 5;
/// Most plain text of one record.
pub(super) const MAX_PLAIN: usize = 1 << 14;
const TAG: usize = 16;
/// What a record is longer than its plain text: the inner type comes to the header and the tag.
pub(super) const OVERHEAD: usize = HEADER + 1 + TAG;
/// Longest body of a record that is taken: padding counts (5.2).
const MAX_BODY: usize = MAX_PLAIN + 256;
/// Longest record that is taken.
pub(super) const MAX_RECORD: usize = HEADER + MAX_BODY;
/// Records under one key, a little less than AES-GCM may protect (5.5: 2^24.5).
const MAX_RECORDS: u64 = 1 << 24;

/// Types of records.
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const DATA: u8 = 23;

/// The peer broke the protocol, or somebody its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    #[error("a record that is not of TLS 1.3 application data")]
    Type,
    #[error("a record longer than TLS allows")]
    Length,
    #[error("a record that does not authenticate")]
    Forged,
    #[error("a record of padding alone")]
    Empty,
    #[error("a key that cannot be used")]
    Key,
    #[error("too many records for one key")]
    Exhausted,
}

impl RecordError {
    /// The alert that goes with it.
    pub(super) fn alert(self) -> u8 {
        match self {
            Self::Type | Self::Empty => 10,
            Self::Length => 22,
            Self::Forged => 20,
            Self::Key | Self::Exhausted => 80,
        }
    }
}

/// Key, IV and counter of one direction.
struct Keys {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Keys {
    fn new(sequence: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, RecordError> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(RecordError::Key),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| RecordError::Key)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv: iv.as_ref().try_into().map_err(|_| RecordError::Key)?,
            sequence,
        })
    }

    /// Never the same one twice under a key.
    fn nonce(&mut self) -> Result<Nonce, RecordError> {
        let mut nonce = self.iv;
        for (byte, count) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= count;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(RecordError::Exhausted)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Seals what is sent.
pub(super) struct Sealer(Keys);

impl Sealer {
    pub(super) fn new(
        sequence: u64,
        secrets: &ConnectionTrafficSecrets,
    ) -> Result<Self, RecordError> {
        Keys::new(sequence, secrets).map(Self)
    }

    /// Whether it is time for the next key.
    pub(super) fn is_worn(&self) -> bool {
        self.0.sequence >= MAX_RECORDS
    }

    /// Writes the record of `plain`, at most [`MAX_PLAIN`], to the start of `out`; its length.
    pub(super) fn seal(
        &mut self,
        kind: u8,
        plain: &[u8],
        out: &mut [u8],
    ) -> Result<usize, RecordError> {
        let total = plain.len() + OVERHEAD;
        if plain.len() > MAX_PLAIN {
            return Err(RecordError::Length);
        }
        let out = out.get_mut(..total).ok_or(RecordError::Length)?;
        let (header, body) = out.split_at_mut(HEADER);
        header.copy_from_slice(&header_of(plain.len()));
        let (text, rest) = body.split_at_mut(plain.len());
        let nonce = self.0.nonce()?;
        self.0
            .key
            .seal_out_of_place_scatter(nonce, Aad::from(&*header), plain, text, &[kind], rest)
            .map_err(|_| RecordError::Key)?;
        Ok(total)
    }

    /// The same for plain text that is in its place already, [`HEADER`] bytes after the start of `out`.
    pub(super) fn seal_in_place(
        &mut self,
        kind: u8,
        plain: usize,
        out: &mut [u8],
    ) -> Result<usize, RecordError> {
        let total = plain + OVERHEAD;
        if plain > MAX_PLAIN {
            return Err(RecordError::Length);
        }
        let out = out.get_mut(..total).ok_or(RecordError::Length)?;
        let (header, body) = out.split_at_mut(HEADER);
        header.copy_from_slice(&header_of(plain));
        let (text, rest) = body.split_at_mut(plain);
        let nonce = self.0.nonce()?;
        self.0
            .key
            .seal_in_place_scatter(nonce, Aad::from(&*header), text, &[kind], rest)
            .map_err(|_| RecordError::Key)?;
        Ok(total)
    }
}

fn header_of(plain: usize) -> [u8; HEADER] {
    let [high, low] = ((plain + 1 + TAG) as u16).to_be_bytes();
    [DATA, 3, 3, high, low]
}

/// Length of the record that begins here; `None` while its header is not complete.
pub(super) fn record_length(incoming: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some(header) = incoming.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let body = usize::from(u16::from_be_bytes([header[3], header[4]]));
    if header[0] != DATA {
        return Err(RecordError::Type);
    }
    if body > MAX_BODY {
        return Err(RecordError::Length);
    }
    Ok(Some(HEADER + body))
}

/// Opens what is received.
pub(super) struct Opener(Keys);

impl Opener {
    pub(super) fn new(
        sequence: u64,
        secrets: &ConnectionTrafficSecrets,
    ) -> Result<Self, RecordError> {
        Keys::new(sequence, secrets).map(Self)
    }

    /// Opens one whole record where it is. Its type, and the length of its plain text, which begins after the header.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<(u8, usize), RecordError> {
        let (header, body) = record
            .split_at_mut_checked(HEADER)
            .ok_or(RecordError::Length)?;
        let nonce = self.0.nonce()?;
        let plain = self
            .0
            .key
            .open_in_place(nonce, Aad::from(&*header), body)
            .map_err(|_| RecordError::Forged)?;
        // Behind the plain text its type and zeros (5.2).
        let end = plain
            .iter()
            .rposition(|b| *b != 0)
            .ok_or(RecordError::Empty)?;
        if end > MAX_PLAIN {
            return Err(RecordError::Length);
        }
        Ok((plain[end], end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (Sealer, Opener) {
        let keys = || Keys {
            key: LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[7; 16]).unwrap()),
            iv: [3; 12],
            sequence: 5,
        };
        (Sealer(keys()), Opener(keys()))
    }

    #[test]
    fn what_is_sealed_is_opened() {
        let (mut sealer, mut opener) = keys();
        let mut out = vec![0; MAX_RECORD];
        for length in [0, 1, 100, MAX_PLAIN] {
            let plain = vec![length as u8; length];
            let n = sealer.seal(DATA, &plain, &mut out).unwrap();
            assert_eq!(record_length(&out).unwrap(), Some(n));
            assert_eq!(opener.open(&mut out[..n]).unwrap(), (DATA, length));
            assert_eq!(out[HEADER..HEADER + length], plain);
            out[HEADER..HEADER + length].copy_from_slice(&plain);
            let n = sealer.seal_in_place(HANDSHAKE, length, &mut out).unwrap();
            assert_eq!(opener.open(&mut out[..n]).unwrap(), (HANDSHAKE, length));
            assert_eq!(out[HEADER..HEADER + length], plain);
        }
        assert_eq!(
            sealer.seal(DATA, &vec![0; MAX_PLAIN + 1], &mut vec![0; 1 << 15]),
            Err(RecordError::Length)
        );
        assert_eq!(
            sealer.seal(DATA, &[0; 10], &mut [0; 10]),
            Err(RecordError::Length)
        );
    }

    #[test]
    fn what_was_touched_is_not() {
        for at in [0, 2, HEADER, HEADER + 3, HEADER + 20] {
            let (mut sealer, mut opener) = keys();
            let mut out = [0; 64];
            let n = sealer.seal(DATA, b"something", &mut out).unwrap();
            out[at] ^= 1;
            assert_eq!(opener.open(&mut out[..n]), Err(RecordError::Forged), "{at}");
        }
        // Nor what comes twice, or too short.
        let (mut sealer, mut opener) = keys();
        let mut out = [0; 64];
        let n = sealer.seal(DATA, b"something", &mut out).unwrap();
        let mut again = out;
        opener.open(&mut out[..n]).unwrap();
        assert_eq!(opener.open(&mut again[..n]), Err(RecordError::Forged));
        assert_eq!(
            opener.open(&mut [DATA, 3, 3, 0, 2, 1, 1]),
            Err(RecordError::Forged)
        );
        assert_eq!(opener.open(&mut [1]), Err(RecordError::Length));
    }

    #[test]
    fn padding_is_taken_off() {
        let (mut sealer, mut opener) = keys();
        let mut out = [0; 64];
        // The inner type and padding as plain text, under an inner type of zero.
        let n = sealer.seal(0, &[1, 2, 3, DATA, 0, 0], &mut out).unwrap();
        assert_eq!(opener.open(&mut out[..n]).unwrap(), (DATA, 3));
        let n = sealer.seal(0, &[0; 9], &mut out).unwrap();
        assert_eq!(opener.open(&mut out[..n]), Err(RecordError::Empty));
    }

    #[test]
    fn headers() {
        assert_eq!(record_length(&[DATA, 3, 3, 0]), Ok(None));
        assert_eq!(
            record_length(&[DATA, 3, 3, 1, 0, 9]),
            Ok(Some(HEADER + 256))
        );
        assert_eq!(
            record_length(&[HANDSHAKE, 3, 3, 1, 0]),
            Err(RecordError::Type)
        );
        assert_eq!(record_length(&[20, 3, 3, 0, 1]), Err(RecordError::Type));
        assert_eq!(
            record_length(&[DATA, 3, 3, 0x41, 1]),
            Err(RecordError::Length)
        );
    }
}
