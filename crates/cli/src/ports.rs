//! Which ports a local cluster gets: a free block below the range that the kernel gives out by itself.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
};

use crate::output::{Failure, Outcomes};

/// Ports per node, of which four are used: client, peer, gossip, admin.
pub(crate) const PER_NODE: u16 = 10;
/// Where the search begins.
const FIRST: u16 = 20_000;
/// Ports from there on in which the search begins, elsewhere in every process, so that clusters made at once do not fight
/// over one block.
const SPREAD: u16 = 12_000;
/// Where the kernel's own range begins unless it says otherwise.
const EPHEMERAL: u16 = 32_768;

/// The first port of a block for `nodes` nodes: `wanted`, or one that is free now.
pub(crate) fn block(nodes: u16, wanted: Option<u16>) -> Outcomes<u16> {
    let width = nodes.saturating_mul(PER_NODE);
    if let Some(base) = wanted {
        return match base.checked_add(width - 1) {
            Some(_) if base > 0 => Ok(base),
            _ => Err(Failure::usage(
                format!("--base-port {base}: {nodes} nodes need {width} ports from there"),
                format!("use a port from 1024 to {}", u16::MAX - width + 1),
            )),
        };
    }
    let ephemeral = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next().and_then(|low| low.parse().ok()))
        .unwrap_or(EPHEMERAL);
    let places = (SPREAD / width.max(1)).max(1);
    let start = FIRST + (std::process::id() % u32::from(places)) as u16 * width;
    choose(ephemeral, width, start, is_free).ok_or_else(|| {
        Failure::local("no free block of ports below the ephemeral range", "give one with --base-port")
    })
}

/// The first block of `width` free ports from `start` on, then from 1024 on, that ends below `ephemeral`. Where the
/// kernel's range begins so low that nothing lies below it, the usual range counts instead.
fn choose(ephemeral: u16, width: u16, start: u16, is_free: impl Fn(u16) -> bool) -> Option<u16> {
    let end = if ephemeral > 2048 + width { ephemeral } else { EPHEMERAL };
    let last = end.checked_sub(width)?;
    let first = start.min(last);
    let candidates = (first..=last).step_by(width.into()).chain((1024..first).step_by(width.into()));
    candidates.filter(|base| *base <= last).find(|base| (*base..base + width).all(&is_free))
}

/// Whether nobody listens on the ports of the node that begins at `base`.
pub(crate) fn are_free(base: u16) -> bool {
    base.checked_add(PER_NODE).is_some_and(|end| (base..end).all(is_free))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_lies_below_the_ephemeral_range() {
        assert_eq!(choose(32_768, 50, 20_000, |_| true), Some(20_000));
        assert_eq!(choose(20_030, 50, 20_000, |_| true), Some(19_980));
        assert_eq!(choose(9000, 10, 20_000, |_| true), Some(8990));
    }

    #[test]
    fn a_block_with_one_port_in_use_is_passed_over() {
        assert_eq!(choose(32_768, 50, 20_000, |port| port != 20_049), Some(20_050));
        assert_eq!(choose(32_768, 10, 32_758, |port| port < 32_758), Some(1024));
        assert_eq!(choose(32_768, 10, 20_000, |_| false), None);
    }

    #[test]
    fn a_kernel_that_gives_out_everything_leaves_the_usual_range() {
        assert_eq!(choose(1024, 10, 20_000, |_| true), Some(20_000));
    }

    #[test]
    fn a_wanted_block_must_fit() {
        assert_eq!(block(5, Some(65_486)).ok(), Some(65_486));
        assert_eq!(block(5, Some(65_487)).unwrap_err().exit, 2);
        assert_eq!(block(1, Some(0)).unwrap_err().exit, 2);
    }
}
