//! Both ends of a connection as pure machines: bytes of frames in, bytes of frames and verdicts out.

pub mod consumer;
pub mod direct;
pub mod guard;
pub mod handshake;
pub mod home;
mod lane;
pub mod peer;
pub mod producer;
pub mod silence;
mod spread;
pub mod ways;
