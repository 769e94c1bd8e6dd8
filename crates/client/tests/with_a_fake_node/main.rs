//! The client against a node that does what each test wants: breaks connections, loses answers, says no.

mod asking;
mod connecting;
mod consuming;
mod fake;
mod keys;
mod leading;
mod moving;
mod producing;
mod silent;
