//! What a node believes about the others: who seems alive, and what each says of itself. Hints only: nothing that decides
//! about messages, leaders or members is read from here.

mod compose;
mod correspondent;
pub mod detector;
pub mod gossip;
pub mod report;

#[cfg(test)]
mod gossip_tests;
#[cfg(test)]
mod testbed;
