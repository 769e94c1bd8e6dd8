//! Redis Streams: one server, the file synced before every answer, a group with one consumer. One copy: a reference only.

use std::{collections::VecDeque, process::Command, time::Duration};

use bytes::{Bytes, BytesMut};

use super::{
    Broker, Connector, Consumer, Description, Place, Producer, Received,
    resp::{Value, put_command, take_value},
    wire::Wire,
};
use crate::{
    failure::{Failure, Outcome},
    plan::{InOrder, Load},
    process::{Guarded, Pid, find_program, free_ports, listens, output_of, wait_until},
};

const GROUP: &[u8] = b"bench";
const CONSUMER: &[u8] = b"one";
/// Entries in one answer.
const COUNT: &[u8] = b"256";
/// Milliseconds after which an empty answer comes.
const BLOCK: &[u8] = b"1000";
const START_TIME_MAX: Duration = Duration::from_secs(30);

/// One server.
pub(crate) struct Redis {
    port: u16,
    node: Guarded,
    description: Description,
}

impl Redis {
    async fn call(&self, words: &[&[u8]]) -> Outcome<Value> {
        let mut wire = Wire::connect(self.port).await?;
        put_command(&mut wire.out, words);
        loop {
            wire.turn().await?;
            match take_value(&mut wire.input)? {
                Some(Value::Error(why)) => return Err(Failure::broken(format!("Redis: {why}"))),
                Some(value) => return Ok(value),
                None => {}
            }
        }
    }
}

impl Broker for Redis {
    type Connector = RedisConnector;

    fn start(place: &Place, _configuration: &str) -> Outcome<Self> {
        let program = find_program("redis-server").ok_or_else(|| Failure::Absent {
            what: "redis-server".into(),
            install: "apt-get install redis-server".into(),
        })?;
        let said = output_of(Command::new(&program).arg("--version"))?;
        let version = said.split_whitespace().find_map(|word| word.strip_prefix("v=")).unwrap_or_default();
        let port = free_ports(1)?[0];
        let mut command = Command::new(program);
        command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"])
            .args(["--appendfsync", "always", "--daemonize", "no", "--dir"])
            .arg(&place.directory);
        let mut node = Guarded::start(&mut command, &place.directory.join("redis.log"))?;
        wait_until("Redis listens", START_TIME_MAX, || {
            node.check()?;
            Ok(listens(port).then_some(()))
        })?;
        Ok(Self {
            port,
            node,
            description: Description {
                version: format!("Redis {version}"),
                setup: "1 server, `appendonly yes`, `appendfsync always`, plain text".into(),
                durability: "synced, on one machine only".into(),
                in_order: InOrder::Producer,
                replicated: false,
            },
        })
    }

    fn describe(&self) -> &Description {
        &self.description
    }

    fn nodes(&self) -> Vec<Pid> {
        vec![self.node.pid()]
    }

    async fn create(&mut self, name: &str, _load: Load) -> Outcome<()> {
        self.call(&[b"XGROUP", b"CREATE", name.as_bytes(), GROUP, b"0", b"MKSTREAM"]).await.map(|_| ())
    }

    async fn remove(&mut self, name: &str) -> Outcome<()> {
        self.call(&[b"DEL", name.as_bytes()]).await.map(|_| ())
    }

    fn connector(&self, _name: &str, _load: Load) -> Outcome<RedisConnector> {
        Ok(RedisConnector { port: self.port })
    }

    async fn kill_leader(&mut self, _name: &str) -> Outcome<()> {
        Err(Failure::broken("Redis has one copy: there is nobody to take over"))
    }

    async fn mend(&mut self, _name: &str) -> Outcome<()> {
        Ok(())
    }
}

/// Connects to the server.
#[derive(Clone)]
pub(crate) struct RedisConnector {
    port: u16,
}

impl Connector for RedisConnector {
    type Producer = RedisProducer;
    type Consumer = RedisConsumer;

    async fn producer(&self, name: &str, _number: u16) -> Outcome<RedisProducer> {
        Ok(RedisProducer { wire: Wire::connect(self.port).await?, name: name.into(), open: VecDeque::new() })
    }

    async fn consumer(&self, name: &str) -> Outcome<RedisConsumer> {
        Ok(RedisConsumer {
            wire: Wire::connect(self.port).await?,
            name: name.into(),
            done: Vec::new(),
            is_reading: false,
        })
    }
}

/// One connection that publishes.
pub(crate) struct RedisProducer {
    wire: Wire,
    name: String,
    open: VecDeque<u32>,
}

impl Producer for RedisProducer {
    async fn send(&mut self, sequence: u32, body: Bytes) -> Outcome<()> {
        put_command(&mut self.wire.out, &[b"XADD", self.name.as_bytes(), b"*", b"b", &body]);
        self.open.push_back(sequence);
        Ok(())
    }

    async fn confirmed(&mut self, sequences: &mut Vec<u32>) -> Outcome<()> {
        while sequences.is_empty() {
            self.wire.turn().await?;
            // Answers come in the order of the commands.
            while let Some(value) = take_value(&mut self.wire.input)? {
                match value {
                    Value::Text(_) => sequences.extend(self.open.pop_front()),
                    other => return Err(Failure::broken(format!("Redis said {other:?}"))),
                }
            }
        }
        Ok(())
    }

    async fn close(self) -> u64 {
        0
    }
}

/// One connection that consumes.
pub(crate) struct RedisConsumer {
    wire: Wire,
    name: String,
    /// To be acknowledged.
    done: Vec<Bytes>,
    is_reading: bool,
}

impl RedisConsumer {
    fn put_done(&mut self) {
        if self.done.is_empty() {
            return;
        }
        let name = self.name.as_bytes();
        let mut acknowledge: Vec<&[u8]> = vec![b"XACK", name, GROUP];
        acknowledge.extend(self.done.iter().map(|id| &id[..]));
        put_command(&mut self.wire.out, &acknowledge);
        // What everybody is done with goes, as it does with the other brokers' queues.
        let mut delete: Vec<&[u8]> = vec![b"XDEL", name];
        delete.extend(self.done.iter().map(|id| &id[..]));
        put_command(&mut self.wire.out, &delete);
        self.done.clear();
    }

    fn put_read(&mut self) {
        let out: &mut BytesMut = &mut self.wire.out;
        let words: [&[u8]; 11] = [
            b"XREADGROUP",
            b"GROUP",
            GROUP,
            CONSUMER,
            b"COUNT",
            COUNT,
            b"BLOCK",
            BLOCK,
            b"STREAMS",
            self.name.as_bytes(),
            b">",
        ];
        put_command(out, &words);
        self.is_reading = true;
    }
}

impl Consumer for RedisConsumer {
    type Token = Bytes;

    async fn receive(&mut self, messages: &mut Vec<Received<Bytes>>) -> Outcome<()> {
        while messages.is_empty() {
            if !self.is_reading {
                self.put_done();
                self.put_read();
            }
            self.wire.turn().await?;
            while let Some(value) = take_value(&mut self.wire.input)? {
                match value {
                    // To the acknowledgement.
                    Value::Number(_) => {}
                    Value::Nothing => self.is_reading = false,
                    Value::Array(streams) => {
                        self.is_reading = false;
                        entries(streams, messages)?;
                    }
                    other => return Err(Failure::broken(format!("Redis said {other:?}"))),
                }
            }
        }
        Ok(())
    }

    async fn acknowledge(&mut self, id: Bytes) -> Outcome<()> {
        self.done.push(id);
        Ok(())
    }

    async fn close(mut self) {
        self.put_done();
        // Courtesy: the stream is removed next.
        let _gone = self.wire.flush().await.is_err();
    }
}

/// From `[[stream, [[id, [field, body]], ...]]]`.
fn entries(streams: Vec<Value>, messages: &mut Vec<Received<Bytes>>) -> Outcome<()> {
    let strange = || Failure::broken("Redis answered a read with something else");
    for stream in streams {
        let Value::Array(mut parts) = stream else { return Err(strange()) };
        let Some(Value::Array(entries)) = parts.pop() else { return Err(strange()) };
        for entry in entries {
            let Value::Array(entry) = entry else { return Err(strange()) };
            let Ok([Value::Text(token), Value::Array(fields)]) = <[Value; 2]>::try_from(entry) else {
                return Err(strange());
            };
            let Ok([_, Value::Text(body)]) = <[Value; 2]>::try_from(fields) else { return Err(strange()) };
            messages.push(Received { body, again: false, token });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_in_an_answer() {
        let mut input = BytesMut::from(
            &b"*1\r\n*2\r\n$1\r\ns\r\n*2\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\nb\r\n$2\r\nhi\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nb\r\n$0\r\n\r\n"[..],
        );
        let Ok(Some(Value::Array(streams))) = take_value(&mut input) else { panic!("not an array") };
        let mut messages = Vec::new();
        entries(streams, &mut messages).unwrap();
        let seen: Vec<_> = messages.iter().map(|message| (&message.token[..], &message.body[..])).collect();
        assert_eq!(seen, [(&b"1-0"[..], &b"hi"[..]), (b"1-1", b"")]);
        assert!(entries(vec![Value::Nothing], &mut Vec::new()).is_err());
    }
}
