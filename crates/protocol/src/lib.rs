//! What travels: identities, limits, frames, the sealed message's clear header, and both ends of a session
//! as pure machines. No sockets, clocks, files or entropy in here.

pub mod id;
pub mod limits;
pub mod time;
