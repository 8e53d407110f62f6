//! TLS over TCP after its handshake: the byte stream that HTTP/2 runs on.
//!
//! - One read takes what a whole buffer holds, and each record is opened where it lies.
//! - What is written gathers in records of one buffer: small writes share a record, large ones are sealed from where they
//!   are. One write sends the lot. HTTP/2 flushes after every frame; that counts only when much has gathered, and whoever
//!   drives the connection flushes once when it has nothing more to say ([`Outgoing::poll_flush`]).
//! - A tunnel owns a buffer only while there is something in it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use rustix::io::Errno;
use rustls::ExtractedSecrets;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use super::{
    buffers::{Buffer, INCOMING, OUTGOING},
    handshake::Kernel,
    record::{
        ALERT, DATA, HANDSHAKE, HEADER, MAX_PLAIN, OVERHEAD, Opener, RecordError, Sealer,
        record_length,
    },
};

/// Bytes that have to gather before HTTP/2's own flushes count.
const WORTH_SENDING: usize = 64 * 1024;
/// A piece that is at least so long is sealed from where it is, rather than copied into a record with others.
const LARGE: usize = 4 * 1024;
/// Bytes that one poll of a connection may read before others run.
const TURN: usize = 1 << 20;
/// Longest handshake message that is put together from several records: a session ticket with a chain in it.
const MAX_MESSAGE: usize = 64 * 1024;
/// Records without data in a row that are taken.
const MAX_VOID: u8 = 64;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

/// Both directions; HTTP/2 owns it.
pub(super) struct TlsIo {
    stream: Arc<TcpStream>,
    outgoing: Arc<Outgoing>,
    opener: Opener,
    incoming: Incoming,
    /// Opened in the handshake already.
    early: Vec<u8>,
    message: Vec<u8>,
    void: u8,
    closed: bool,
    turn: usize,
}

/// What was received and not yet handed on.
#[derive(Default)]
struct Incoming {
    buffer: Option<Buffer>,
    /// Of the opened record's plain text, what is left of it.
    plain: std::ops::Range<usize>,
    /// Of what is not opened.
    sealed: std::ops::Range<usize>,
}

/// The way out, shared with the driver.
pub(super) struct Outgoing {
    stream: Arc<TcpStream>,
    state: Mutex<State>,
    /// The driver flushes.
    driven: AtomicBool,
    received: AtomicU64,
    sent: AtomicU64,
}

struct State {
    sealer: Sealer,
    kernel: Kernel,
    buffer: Option<Buffer>,
    /// Of the buffer what is sealed and not sent.
    sealed: std::ops::Range<usize>,
    /// Plain text of the record that is open, behind what is sealed.
    open: usize,
    /// Where the last key update that is in the buffer ends; 0 for none.
    updated: usize,
}

impl TlsIo {
    pub(super) fn new(
        stream: TcpStream,
        secrets: &ExtractedSecrets,
        kernel: Kernel,
        incoming: &[u8],
        early: Vec<u8>,
    ) -> Result<Self, RecordError> {
        let stream = Arc::new(stream);
        let (tx, rx) = (&secrets.tx, &secrets.rx);
        let outgoing = Outgoing {
            stream: Arc::clone(&stream),
            state: Mutex::new(State {
                sealer: Sealer::new(tx.0, &tx.1)?,
                kernel,
                buffer: None,
                sealed: 0..0,
                open: 0,
                updated: 0,
            }),
            driven: AtomicBool::new(false),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        };
        let mut io = Self {
            stream,
            outgoing: Arc::new(outgoing),
            opener: Opener::new(rx.0, &rx.1)?,
            incoming: Incoming::default(),
            early,
            message: Vec::new(),
            void: 0,
            closed: false,
            turn: 0,
        };
        if !incoming.is_empty() {
            let mut buffer = INCOMING.take();
            let space = buffer
                .get_mut(..incoming.len())
                .ok_or(RecordError::Length)?;
            space.copy_from_slice(incoming);
            io.incoming.sealed = 0..incoming.len();
            io.incoming.buffer = Some(buffer);
        }
        Ok(io)
    }

    pub(super) fn outgoing(&self) -> Arc<Outgoing> {
        Arc::clone(&self.outgoing)
    }

    pub(super) fn probe(&self) -> Weak<TcpStream> {
        Arc::downgrade(&self.stream)
    }

    /// Hands on what is opened. False: nothing is.
    fn hand_on(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        if !self.early.is_empty() {
            let n = self.early.len().min(buf.remaining());
            buf.put_slice(&self.early[..n]);
            self.early.drain(..n);
            return true;
        }
        let Incoming { buffer, plain, .. } = &mut self.incoming;
        let Some(buffer) = buffer else {
            return false;
        };
        let n = plain.len().min(buf.remaining());
        if n == 0 {
            return false;
        }
        buf.put_slice(&buffer[plain.start..plain.start + n]);
        plain.start += n;
        true
    }

    /// Opens the next record, if it is there as a whole.
    fn open(&mut self) -> io::Result<bool> {
        let Some(buffer) = &mut self.incoming.buffer else {
            return Ok(false);
        };
        let sealed = self.incoming.sealed.clone();
        let length = record_length(&buffer[sealed.clone()]);
        let Some(length) = self.outgoing.or_alert(length)? else {
            return Ok(false);
        };
        if length > sealed.len() {
            return Ok(false);
        }
        let record = &mut buffer[sealed.start..sealed.start + length];
        let (kind, plain) = self.outgoing.or_alert(self.opener.open(record))?;
        self.incoming.sealed.start += length;
        let start = sealed.start + HEADER;
        if kind == DATA {
            self.incoming.plain = start..start + plain;
            if plain > 0 {
                self.void = 0;
                return Ok(true);
            }
        }
        self.void += 1;
        if self.void > MAX_VOID {
            return Err(broken("more records without data than make sense"));
        }
        match kind {
            DATA => {}
            HANDSHAKE => {
                self.message
                    .extend_from_slice(&buffer[start..start + plain]);
                self.messages()?;
            }
            ALERT => match buffer[start..start + plain] {
                [_, CLOSE_NOTIFY] => self.closed = true,
                [_, USER_CANCELED] => {}
                [_, alert] => return Err(broken(&format!("the peer sent alert {alert}"))),
                _ => return Err(broken("a broken alert")),
            },
            _ => return self.outgoing.or_alert(Err(RecordError::Type)),
        }
        Ok(true)
    }

    /// Takes what comes after a handshake: session tickets and new keys.
    fn messages(&mut self) -> io::Result<()> {
        while let Some(header) = self.message.first_chunk::<4>() {
            let [kind, a, b, c] = *header;
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if length > MAX_MESSAGE {
                return Err(broken("a handshake message that is too long"));
            }
            let Some(payload) = self.message.get(4..4 + length) else {
                return Ok(());
            };
            let mut state = self.outgoing.lock();
            match (kind, payload) {
                (NEW_SESSION_TICKET, ticket) => match &mut state.kernel {
                    Kernel::Client(kernel) => {
                        kernel.handle_new_session_ticket(ticket).map_err(tls)?;
                    }
                    Kernel::Server(_) => return Err(broken("a session ticket from a client")),
                },
                (KEY_UPDATE, [wanted @ (0 | 1)]) => {
                    // Nothing may follow under the old key.
                    if self.message.len() > 4 + length {
                        return Err(broken("a message behind a key update"));
                    }
                    let (sequence, secrets) = match &mut state.kernel {
                        Kernel::Client(kernel) => kernel.update_rx_secret(),
                        Kernel::Server(kernel) => kernel.update_rx_secret(),
                    }
                    .map_err(tls)?;
                    self.opener = Opener::new(sequence, &secrets).map_err(record)?;
                    // One answer is enough while the peer has not got it (4.6.3), and a peer that asks and does not read
                    // must not fill the buffer with answers.
                    if *wanted == 1 && state.updated <= state.sealed.start {
                        state.update_key().map_err(record)?;
                    }
                }
                _ => return Err(broken("a handshake message that has no place here")),
            }
            drop(state);
            self.message.drain(..4 + length);
        }
        if self.message.is_empty() {
            self.message = Vec::new();
        }
        Ok(())
    }

    /// Reads once from the socket.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.turn >= TURN {
            self.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            match self.stream.poll_read_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    self.turn = 0;
                    self.incoming.put_back();
                    return Poll::Pending;
                }
            }
            let space = self.incoming.space();
            let mut read = None;
            let outcome = self.stream.try_io(Interest::READABLE, || {
                let n = rustix::io::retry_on_intr(|| rustix::io::read(&*self.stream, &mut *space))?;
                read = Some(n);
                // A short read has drained the socket: saves the read that would say so.
                if n != 0 && n < space.len() {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            });
            match (read, outcome) {
                (Some(n), _) => {
                    self.incoming.sealed.end += n;
                    self.turn += n;
                    self.outgoing
                        .received
                        .fetch_add(n as u64, Ordering::Relaxed);
                    return Poll::Ready(Ok(n));
                }
                (None, Err(e)) if e.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(e));
                }
                (None, _) => {}
            }
        }
    }
}

impl Incoming {
    /// Room for at least one record, behind what is there.
    fn space(&mut self) -> &mut [u8] {
        let buffer = self.buffer.get_or_insert_with(|| INCOMING.take());
        if self.sealed.start > 0 {
            // Less than a record is left, or everything has been handed on.
            buffer.copy_within(self.sealed.clone(), 0);
            self.sealed = 0..self.sealed.len();
            self.plain = 0..0;
        }
        &mut buffer[self.sealed.end..]
    }

    /// Gives an empty buffer back.
    fn put_back(&mut self) {
        if self.sealed.is_empty() && self.plain.is_empty() {
            self.buffer = None;
            self.sealed = 0..0;
            self.plain = 0..0;
        }
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            while buf.remaining() > 0 && this.hand_on(buf) {}
            if buf.remaining() == 0 || this.closed {
                return Poll::Ready(Ok(()));
            }
            if this.open()? {
                continue;
            }
            if buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if ready!(this.poll_fill(cx))? == 0 {
                // Without close_notify it may have been cut by anybody.
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.outgoing.poll_write(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.outgoing.poll_write(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = self.outgoing.lock();
        let lazy = self.outgoing.driven.load(Ordering::Relaxed) && state.waiting() < WORTH_SENDING;
        drop(state);
        if lazy {
            return Poll::Ready(Ok(()));
        }
        self.outgoing.poll_flush(cx)
    }

    /// Done when the peer has closed too: a socket that is closed while bytes arrive is reset, and what its kernel still
    /// has to send is lost. A peer that does not close is given up by the driver, as one that answers no PING.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outgoing.driven.swap(false, Ordering::Relaxed) {
            // Once. A failure is one of a connection that is over anyway.
            let _ = self.outgoing.lock().alert(1, CLOSE_NOTIFY);
        }
        ready!(self.outgoing.poll_flush(cx))?;
        let shut = rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Write);
        match shut {
            Ok(()) => {}
            Err(Errno::NOTCONN) => return Poll::Ready(Ok(())),
            Err(e) => return Poll::Ready(Err(e.into())),
        }
        loop {
            // Nobody reads any more.
            self.incoming.plain = 0..0;
            self.incoming.sealed = 0..0;
            match ready!(self.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(Ok(())),
                Ok(_) => {}
            }
        }
    }
}

impl Outgoing {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on whoever polls the connection calls [`Self::poll_flush`] after it.
    pub(super) fn drive(&self) {
        self.driven.store(true, Ordering::Relaxed);
    }

    /// Bytes that came from the peer, and that its kernel has or will get: while they grow it is there.
    pub(super) fn progress(&self) -> (u64, u64) {
        (
            self.received.load(Ordering::Relaxed),
            self.sent.load(Ordering::Relaxed),
        )
    }

    /// Takes what there is room for.
    fn poll_write(&self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        let mut taken = 0;
        for piece in pieces {
            let n = state.put(piece).map_err(record)?;
            taken += n;
            if n < piece.len() {
                break;
            }
        }
        if taken > 0 || pieces.iter().all(|piece| piece.is_empty()) {
            return Poll::Ready(Ok(taken));
        }
        // Full.
        ready!(self.poll_send(cx, &mut state))?;
        let first = pieces.iter().find(|piece| !piece.is_empty());
        Poll::Ready(
            first
                .map_or(Ok(0), |piece| state.put(piece))
                .map_err(record),
        )
    }

    /// Sends everything.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        self.poll_send(cx, &mut state)
    }

    fn poll_send(&self, cx: &mut Context<'_>, state: &mut State) -> Poll<io::Result<()>> {
        state.close_record().map_err(record)?;
        while let Some(buffer) = &state.buffer {
            let data = &buffer[state.sealed.clone()];
            if data.is_empty() {
                break;
            }
            // Tried without asking first: a socket is nearly always writable.
            match rustix::io::retry_on_intr(|| rustix::io::write(&*self.stream, data)) {
                Ok(n) => state.sent(n, &self.sent),
                Err(Errno::AGAIN) => {
                    ready!(self.stream.poll_write_ready(cx))?;
                    let outcome = self.stream.try_io(Interest::WRITABLE, || {
                        Ok(rustix::io::retry_on_intr(|| {
                            rustix::io::write(&*self.stream, data)
                        })?)
                    });
                    match outcome {
                        Ok(n) => state.sent(n, &self.sent),
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                        Err(e) => return Poll::Ready(Err(e)),
                    }
                }
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
        state.buffer = None;
        state.sealed = 0..0;
        state.updated = 0;
        Poll::Ready(Ok(()))
    }

    /// Tells the peer before the connection fails.
    fn or_alert<T>(&self, result: Result<T, RecordError>) -> io::Result<T> {
        result.map_err(|error| {
            let mut state = self.lock();
            let _ = state.alert(2, error.alert());
            let waker = futures::task::noop_waker();
            let _ = self.poll_send(&mut Context::from_waker(&waker), &mut state);
            record(error)
        })
    }
}

impl State {
    /// Bytes that gather.
    fn waiting(&self) -> usize {
        self.sealed.len() + self.open
    }

    /// Takes what there is room for.
    fn put(&mut self, mut piece: &[u8]) -> Result<usize, RecordError> {
        let mut taken = 0;
        while !piece.is_empty() {
            let large =
                piece.len() >= LARGE && (self.open == 0 || self.open + piece.len() > MAX_PLAIN);
            if large || self.open == MAX_PLAIN {
                self.close_record()?;
            }
            let room = self.room();
            if room == 0 {
                break;
            }
            let n = piece.len().min(room);
            let end = self.sealed.end;
            let buffer = self.buffer.get_or_insert_with(|| OUTGOING.take());
            if large {
                self.sealed.end += self.sealer.seal(DATA, &piece[..n], &mut buffer[end..])?;
            } else {
                let at = end + HEADER + self.open;
                buffer[at..at + n].copy_from_slice(&piece[..n]);
                self.open += n;
            }
            taken += n;
            piece = &piece[n..];
            if self.sealer.is_worn() {
                self.update_key()?;
            }
        }
        Ok(taken)
    }

    /// Plain bytes that the open record still takes.
    fn room(&self) -> usize {
        // An alert or a key update fits always, and may have taken some of what is kept for them.
        let space = OUTGOING.size.saturating_sub(self.sealed.end + 128);
        space
            .saturating_sub(OVERHEAD)
            .min(MAX_PLAIN)
            .saturating_sub(self.open)
    }

    fn close_record(&mut self) -> Result<(), RecordError> {
        if let Some(buffer) = &mut self.buffer
            && self.open > 0
        {
            let out = &mut buffer[self.sealed.end..];
            self.sealed.end += self.sealer.seal_in_place(DATA, self.open, out)?;
            self.open = 0;
        }
        Ok(())
    }

    fn seal_small(&mut self, kind: u8, message: &[u8]) -> Result<(), RecordError> {
        self.close_record()?;
        let buffer = self.buffer.get_or_insert_with(|| OUTGOING.take());
        let out = &mut buffer[self.sealed.end..];
        self.sealed.end += self.sealer.seal(kind, message, out)?;
        Ok(())
    }

    fn alert(&mut self, level: u8, alert: u8) -> Result<(), RecordError> {
        self.seal_small(ALERT, &[level, alert])
    }

    /// Goes on with the next key, and says so.
    fn update_key(&mut self) -> Result<(), RecordError> {
        self.seal_small(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0])?;
        self.updated = self.sealed.end;
        let (sequence, secrets) = match &mut self.kernel {
            Kernel::Client(kernel) => kernel.update_tx_secret(),
            Kernel::Server(kernel) => kernel.update_tx_secret(),
        }
        .map_err(|_| RecordError::Key)?;
        self.sealer = Sealer::new(sequence, &secrets)?;
        Ok(())
    }

    fn sent(&mut self, n: usize, total: &AtomicU64) {
        total.fetch_add(n as u64, Ordering::Relaxed);
        self.sealed.start += n;
        if self.sealed.is_empty() && self.open == 0 {
            self.sealed = 0..0;
            self.updated = 0;
        }
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn record(error: RecordError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn tls(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::{Duration, timeout},
    };

    use super::*;
    use crate::proxy::{
        tests::tunnel::pki::Pki,
        tunnel::handshake::{accept, connect},
    };

    /// Both ends of a tunnel.
    async fn pair() -> (TlsIo, TlsIo) {
        let pki = Pki::new(&["client", "server"]);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, server) = tokio::join!(client, listener.accept());
        let name = IpAddr::from(Ipv4Addr::LOCALHOST).into();
        let (client, server) = tokio::join!(
            connect(pki.of("client").client, client.unwrap(), name),
            accept(pki.of("server").server, server.unwrap().0),
        );
        (client.unwrap().0, server.unwrap().0)
    }

    /// Asks for new keys, with one of its own, and says something more.
    async fn ask_for_keys(io: &mut TlsIo) {
        {
            let mut state = io.outgoing.lock();
            state
                .seal_small(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 1])
                .unwrap();
            let Kernel::Server(kernel) = &mut state.kernel else {
                panic!("it is the server");
            };
            let (sequence, secrets) = kernel.update_tx_secret().unwrap();
            state.sealer = Sealer::new(sequence, &secrets).unwrap();
        }
        io.write_all(b"!").await.unwrap();
        io.flush().await.unwrap();
    }

    /// A peer that asks for new keys again and again and does not read: the answers must not take more than there is.
    #[tokio::test]
    async fn keys_are_asked_for_while_the_way_out_is_full() {
        const SOON: Duration = Duration::from_millis(200);
        let (mut client, mut server) = pair().await;
        // A small piece at last, which fills the buffer to its end.
        let mut sent = 0;
        for piece in [&[7; MAX_PLAIN][..], &[7; 1000]] {
            while let Ok(n) = timeout(SOON, client.write(piece)).await {
                sent += n.unwrap();
            }
        }
        assert_eq!(client.outgoing.lock().room(), 0);
        for _ in 0..20 {
            ask_for_keys(&mut server).await;
            assert_eq!(client.read_u8().await.unwrap(), b'!');
            assert!(timeout(SOON / 20, client.write(&[7; 1000])).await.is_err());
        }
        let reading = tokio::spawn(async move {
            let mut received = Vec::new();
            server.read_to_end(&mut received).await.unwrap();
            assert!(received.iter().all(|b| *b == 7));
            received.len()
        });
        client.write_all(&[7; 100_000]).await.unwrap();
        client.outgoing.drive();
        client.shutdown().await.unwrap();
        assert_eq!(reading.await.unwrap(), sent + 100_000);
    }

    /// The kernel has taken everything and sent half of it when the tunnel ends, while the peer says something.
    #[tokio::test]
    async fn what_the_kernel_has_to_send_still_is_not_lost() {
        const BYTES: usize = 1 << 20;
        let (mut client, mut server) = pair().await;
        server.outgoing.drive();
        server.write_all(&[7; BYTES]).await.unwrap();
        client.write_all(b"window update").await.unwrap();
        client.flush().await.unwrap();
        let ending = tokio::spawn(async move { server.shutdown().await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), BYTES);
        drop(client);
        ending.await.unwrap().unwrap();
    }
}
