//! Questions that belong to no session: their deadlines, and what is asked again.

use std::time::Duration;

use swarmmq_client::{Address, AdminAnswer, AdminRequest, Code, Error, Order, Outcome, SwarmMq};
use swarmmq_protocol::{
    frame::{AdminReply, Frame, Peeked, PeekedItem},
    id::Offset,
};

use super::fake::{FakeNode, Peer, SHARDS, messages, soon};

async fn start(deadline: Duration) -> (FakeNode, SwarmMq, Peer) {
    let node = FakeNode::start().await;
    let mut options = node.options();
    options.deadline = deadline;
    let (client, peer) = node.connect(options).await;
    (node, client, peer)
}

fn address() -> Address {
    Address::parse("shop.orders").unwrap()
}

async fn asked(peer: &mut Peer) -> u64 {
    match peer.next().await.unwrap() {
        (request, Frame::Admin(_)) => request,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_node_that_is_gone_lets_no_question_hang() {
    let (node, client, peer) = start(Duration::from_millis(100)).await;
    drop((node, peer));
    let address = address();
    let (status, order, looks) = soon(async {
        tokio::join!(
            client.admin(AdminRequest::Status),
            client.resolve(&address, false, None),
            client.peek("shop.orders", None)
        )
    })
    .await;
    for error in [status.unwrap_err(), order.unwrap_err(), looks.unwrap_err()] {
        assert!(matches!(error, Error::Failed { code: Code::Deadline, .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_look_is_repeated_on_the_next_connection() {
    let (node, client, mut peer) = start(Duration::from_secs(20)).await;
    let looking = tokio::spawn(async move { client.admin(AdminRequest::AddressList).await });
    asked(&mut peer).await;
    drop(peer);
    let mut peer = node.accept().await;
    let request = asked(&mut peer).await;
    peer.send(request, &AdminReply(AdminAnswer::Addresses(vec![(address(), Order::Key)]))).await;
    let answer = soon(looking).await.unwrap().unwrap();
    assert_eq!(answer, Some(AdminAnswer::Addresses(vec![(address(), Order::Key)])));
}

#[tokio::test]
async fn a_removal_is_not_repeated_and_its_outcome_is_unknown() {
    let (node, client, mut peer) = start(Duration::from_secs(20)).await;
    let purge = AdminRequest::AddressPurge { address: address(), dry_run: false };
    let removing = {
        let client = client.clone();
        tokio::spawn(async move { client.admin(purge).await })
    };
    asked(&mut peer).await;
    drop(peer);
    let error = soon(removing).await.unwrap().unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
    let mut peer = node.accept().await;
    // The next question is the first that the new connection sees.
    let looking = tokio::spawn(async move { client.admin(AdminRequest::AddressList).await });
    match peer.next().await.unwrap() {
        (request, Frame::Admin(admin)) => {
            assert_eq!(admin.0, AdminRequest::AddressList);
            peer.refuse(request, Code::NotAllowed).await;
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(soon(looking).await.unwrap().unwrap_err().code(), "not_allowed");
}

#[tokio::test]
async fn looking_goes_page_by_page_and_ends_when_it_has_enough() {
    let (_node, client, mut peer) = start(Duration::from_secs(20)).await;
    let looking = tokio::spawn(async move { client.peek_first("shop.orders", None, 3).await });
    peer.tell_order(Order::Total).await;
    let mut next = 0;
    for count in [2, 1] {
        let (request, peek) = match peer.next().await.unwrap() {
            (request, Frame::Peek(peek)) => (request, peek),
            other => panic!("{other:?}"),
        };
        assert_eq!((peek.from_offset, usize::from(peek.messages_max)), (Offset(next), 3 - next as usize));
        assert!(peek.shard.0 < SHARDS);
        let items = messages(next..next + count)
            .into_iter()
            .map(|(offset, sealed)| PeekedItem { offset: Offset(offset), reason: String::new(), sealed })
            .collect();
        next += count;
        peer.send(request, &Peeked { next_offset: Offset(next), end: false, items }).await;
    }
    let seen = soon(looking).await.unwrap().unwrap();
    assert_eq!(seen.iter().map(|seen| seen.offset.0).collect::<Vec<_>>(), [0, 1, 2]);
}
