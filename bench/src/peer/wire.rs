//! A connection for our own minimal clients: bytes that wait to be written, bytes that were read.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::{io::Interest, net::TcpStream};

use crate::failure::{During, Failure, Outcome};

const READ_BYTES: usize = 64 << 10;

/// One connection.
pub(crate) struct Wire {
    stream: TcpStream,
    pub(crate) out: BytesMut,
    pub(crate) input: BytesMut,
}

impl Wire {
    pub(crate) async fn connect(port: u16) -> Outcome<Self> {
        let stream =
            TcpStream::connect(("127.0.0.1", port)).await.during(format!("cannot connect to port {port}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, out: BytesMut::new(), input: BytesMut::new() })
    }

    /// Writes what waits, as far as there is room, and returns when something was read. Cancel safe.
    pub(crate) async fn turn(&mut self) -> Outcome<()> {
        loop {
            if self.read()? {
                // What the other side waits for does not wait for the next call.
                self.write()?;
                return Ok(());
            }
            self.write()?;
            let both = Interest::READABLE | Interest::WRITABLE;
            let interest = if self.out.is_empty() { Interest::READABLE } else { both };
            self.stream.ready(interest).await?;
        }
    }

    /// Writes what waits. Cancel safe.
    pub(crate) async fn flush(&mut self) -> Outcome<()> {
        loop {
            self.write()?;
            if self.out.is_empty() {
                return Ok(());
            }
            self.stream.writable().await?;
        }
    }

    fn read(&mut self) -> Outcome<bool> {
        self.input.reserve(READ_BYTES);
        match self.stream.try_read_buf(&mut self.input) {
            Ok(0) => Err(Failure::broken("the server closed the connection")),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&mut self) -> Outcome<()> {
        while !self.out.is_empty() {
            match self.stream.try_write(&self.out) {
                Ok(count) => self.out.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
