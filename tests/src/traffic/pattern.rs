//! Bytes that can be checked at any offset: word i of stream s is a hash of (s, i). A lost, doubled, swapped or
//! foreign byte shows where it is.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
};

const CHUNK: usize = 64 * 1024;

/// splitmix64.
fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn fill(seed: u64, offset: u64, buffer: &mut [u8]) {
    debug_assert_eq!(offset % 8, 0, "chunks are whole words");
    for (i, bytes) in buffer.chunks_mut(8).enumerate() {
        let w = word(seed, offset / 8 + i as u64).to_le_bytes();
        bytes.copy_from_slice(&w[..bytes.len()]);
    }
}

/// Writes `len` bytes of stream `seed`, then sends FIN.
pub fn send(mut stream: &TcpStream, seed: u64, len: u64) -> io::Result<()> {
    let mut buffer = vec![0_u8; CHUNK];
    let mut sent = 0;
    while sent < len {
        let n = (len - sent).min(CHUNK as u64) as usize;
        fill(seed, sent, &mut buffer[..n]);
        stream.write_all(&buffer[..n])?;
        sent += n as u64;
    }
    stream.shutdown(Shutdown::Write)
}

/// Reads to the FIN and checks every byte against stream `seed`; gives how many came.
pub fn receive(mut stream: &TcpStream, seed: u64) -> io::Result<u64> {
    let mut buffer = vec![0_u8; CHUNK];
    let mut expected = vec![0_u8; CHUNK];
    let mut got = 0_u64;
    loop {
        // Whole words but for the last, so that the offset stays a multiple of eight.
        let mut n = 0;
        while n < CHUNK {
            match stream.read(&mut buffer[n..]) {
                Ok(0) => break,
                Ok(m) => n += m,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(io::Error::new(e.kind(), format!("{e}, after {got} bytes"))),
            }
        }
        fill(seed, got, &mut expected[..n]);
        if buffer[..n] != expected[..n] {
            let at = (0..n).find(|i| buffer[*i] != expected[*i]).unwrap_or(0);
            return Err(io::Error::other(format!(
                "wrong byte at {}",
                got + at as u64
            )));
        }
        got += n as u64;
        if n < CHUNK {
            return Ok(got);
        }
    }
}

/// Both at once, as two threads: sends `send_len` bytes of `send_seed` and checks what comes against `receive_seed`.
pub fn exchange(
    stream: &TcpStream,
    send_seed: u64,
    send_len: u64,
    receive_seed: u64,
) -> io::Result<u64> {
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(stream, send_seed, send_len));
        let got = receive(stream, receive_seed);
        sender.join().expect("the sender panicked")?;
        got
    })
}
