//! How a consumer ends: everything goes back, nothing comes any more, and every settlement has its end.

use super::*;

#[test]
fn closing_gives_everything_back_and_leaves() {
    let mut rig = Rig::holding(&[1, 2]);
    rig.step(Input::Deliver(&[(3, 1)]));
    let ack = rig.step(Input::Settle(2, Ack, 70));
    let out = rig.step(Input::Close);
    let [Out::Settle { request: release, items }, Out::Unsubscribe { request: leave }] = &out[..] else {
        panic!("nothing may come while it is given back: {out:?}")
    };
    assert_eq!(items, &[(1, 5, 1, Release), (3, 5, 1, Release)]);
    assert_eq!(rig.step(Input::Take), [], "what was not handed out is not handed out any more");
    assert_eq!(rig.step(Input::Settle(1, Ack, 71)), [Out::Told(71, SettleResult::LeaseLost)]);
    assert_eq!(rig.step(Input::Answer(*leave, Done, None)), []);
    assert!(!rig.session.is_closed(), "the settlement of 2 is still to be told");
    assert_eq!(rig.session.next_wake(), None, "it has only to listen");
    assert_eq!(rig.step(Input::Fates(*release, &[(2, Done, None)])), [], "releases are nobody's question");
    let told = rig.step(Input::Fates(request(&ack), &[(1, Done, None)]));
    assert_eq!(told, [Out::Told(70, SettleResult::Done)]);
    assert!(rig.session.is_closed());
}

#[test]
fn what_comes_while_closing_goes_back_over_a_subscription_without_credit() {
    let mut rig = Rig::holding(&[1]);
    let out = rig.step(Input::Close);
    let [Out::Settle { request: release, .. }, Out::Unsubscribe { request: leave }] = out[..] else {
        panic!("{out:?}")
    };
    assert_eq!(rig.step(Input::Deliver(&[(2, 1)])), [], "it was on its way");
    assert_eq!(rig.step(Input::Fates(release, &[(1, Done, None)])), []);
    let out = rig.step(Input::Answer(leave, Done, None));
    let [Out::Subscribe { request: join, held, credit: 0, start: None }] = &out[..] else {
        panic!("{out:?}")
    };
    assert_eq!(held, &[(2, 1)]);
    let release = rig.step(Input::Subscribed(*join, 5, &[]));
    assert_settles(&release, &[(2, 5, 1, Release)]);
    let leave = rig.step(Input::Fates(request(&release), &[(1, Done, None)]));
    assert!(matches!(leave[..], [Out::Unsubscribe { .. }]), "{leave:?}");
    rig.step(Input::Answer(request(&leave), Done, None));
    assert!(rig.session.is_closed());
}

#[test]
fn a_release_that_fails_while_closing_is_tried_again() {
    let mut rig = Rig::holding(&[1]);
    let out = rig.step(Input::Close);
    let [Out::Settle { request: release, .. }, Out::Unsubscribe { request: leave }] = out[..] else {
        panic!("{out:?}")
    };
    rig.step(Input::Answer(leave, Done, None));
    let join = rig.step(Input::Fates(release, &[(1, Failed, Some(Code::NotLeader))]));
    assert!(matches!(join[..], [Out::Subscribe { credit: 0, .. }]), "{join:?}");
    assert_eq!(rig.step(Input::Subscribed(request(&join), 6, &[])), [], "after a pause");
    let again = rig.wake();
    assert_settles(&again, &[(1, 6, 1, Release)]);
}

#[test]
fn a_connection_that_breaks_while_closing_is_made_again_to_give_things_back() {
    for leaving in [false, true] {
        let mut rig = Rig::holding(&[1]);
        if leaving {
            rig.step(Input::Close);
            rig.step(Input::Disconnect);
        } else {
            rig.step(Input::Disconnect);
            rig.step(Input::Close);
        }
        assert!(!rig.session.is_closed());
        let out = rig.step(Input::Connect);
        let [Out::Subscribe { request: join, held, credit: 0, .. }] = &out[..] else { panic!("{out:?}") };
        assert_eq!(held, &[(1, 1)]);
        // Given back by the first try, if there was one; otherwise now.
        let leave = if leaving {
            rig.step(Input::Subscribed(*join, 6, &[1]))
        } else {
            let release = rig.step(Input::Subscribed(*join, 6, &[]));
            assert_settles(&release, &[(1, 6, 1, Release)]);
            rig.step(Input::Fates(request(&release), &[(1, Done, None)]))
        };
        assert!(matches!(leave[..], [Out::Unsubscribe { .. }]), "{leave:?}");
        rig.step(Input::Answer(request(&leave), Done, None));
        assert!(rig.session.is_closed());
    }
}

#[test]
fn who_is_closing_asks_for_no_more() {
    let mut rig = Rig::holding(&[1, 2, 3, 4, 5, 6, 7]);
    rig.step(Input::Disconnect);
    rig.step(Input::Close);
    let subscribe = rig.step(Input::Connect);
    let release = rig.step(Input::Subscribed(request(&subscribe), 5, &[]));
    let fates = [(6, Done, None), (1, Failed, Some(Code::NotLeader))];
    assert_eq!(rig.step(Input::Fates(request(&release), &fates)), []);
    assert_eq!(rig.session.held().len(), 1);
}

#[test]
fn who_holds_nothing_leaves_at_once() {
    let mut rig = Rig::active();
    let leave = rig.step(Input::Close);
    assert!(matches!(leave[..], [Out::Unsubscribe { .. }]), "{leave:?}");
    assert!(!rig.session.is_closed());
    rig.step(Input::Answer(request(&leave), Done, None));
    assert!(rig.session.is_closed());

    let mut rig = Rig::active();
    rig.step(Input::Close);
    rig.step(Input::Disconnect);
    assert!(rig.session.is_closed(), "the node forgets the subscription with the connection");

    let mut rig = Rig::new();
    rig.step(Input::Close);
    assert!(rig.session.is_closed(), "it never joined");
    assert_eq!(rig.step(Input::Connect), []);
}
