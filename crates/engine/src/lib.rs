//! What a node decides. Pure: every room takes the time and an input and returns effects; nothing here owns a
//! socket, a file, a clock or a thread, so production, simulator and fuzzer run the same code.

pub mod log;
pub mod node;
pub mod shard;
pub mod swarm;
