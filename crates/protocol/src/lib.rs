//! What travels: identities, limits, frames, packets, the sealed message's clear header, and both ends of a session
//! as pure machines. No sockets, clocks, files or entropy in here.

pub mod access;
pub mod admin;
pub mod codec;
pub mod consensus;
pub mod datagram;
pub mod envelope;
pub mod error;
pub mod frame;
pub mod id;
pub mod join_token;
pub mod limits;
pub mod mac;
pub mod node_key;
pub mod packet;
pub mod policy;
pub mod route;
pub mod session;
pub mod time;
