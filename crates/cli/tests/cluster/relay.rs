//! Between clients and a node: sees what travels.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// Stands between clients and a node and keeps what passes, one stream per connection and direction.
pub struct Relay {
    /// For `--servers`.
    pub address: String,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Relay {
    /// Ends with the test's process.
    pub fn to(node: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let kept = Arc::clone(&seen);
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let server = TcpStream::connect(&node).unwrap();
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let kept = Arc::clone(&kept);
                    thread::spawn(move || pass(from, to, &kept));
                }
            }
        });
        Self { address, seen }
    }

    /// What has passed so far, stream by stream.
    pub fn look(&self, each: impl FnMut(&Vec<u8>)) {
        self.seen.lock().unwrap().iter().for_each(each);
    }
}

/// Carries one direction of a connection to its end. Kept first, so that nothing arrives that was not seen.
fn pass(mut from: TcpStream, mut to: TcpStream, kept: &Mutex<Vec<Vec<u8>>>) {
    let stream = {
        let mut kept = kept.lock().unwrap();
        kept.push(Vec::new());
        kept.len() - 1
    };
    let mut buffer = vec![0; 1 << 16];
    while let Ok(taken @ 1..) = from.read(&mut buffer) {
        kept.lock().unwrap()[stream].extend_from_slice(&buffer[..taken]);
        if to.write_all(&buffer[..taken]).is_err() {
            break;
        }
    }
    // The other side may be gone already.
    let _gone = to.shutdown(Shutdown::Write).is_err();
}
