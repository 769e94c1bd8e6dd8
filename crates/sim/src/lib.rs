//! A whole node with its disk, its clients and their network, in one thread and in virtual time, with faults and judges.
//!
//! One seed decides everything: what clients do, what breaks and when, how long everything takes. The code under test is
//! the product's own: `engine` for the node, `protocol` and `seal` for the clients. Absent here: real time, real files.

mod client;
mod clock;
mod disk;
pub mod history;
pub mod judge;
pub mod plan;
mod rng;
pub mod run;
pub mod scenario;
mod swarm;
mod trace;
