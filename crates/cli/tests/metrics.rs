//! `/metrics` as a monitoring system meets it: well formed, true, and bounded.

mod cluster;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use swarmmq_client::{ClientKeyring, Options, SubscribeOptions, SwarmMq};

use self::cluster::{Dev, exits, get, ok, until};

const PATIENCE: Duration = Duration::from_secs(20);

/// Values by name with labels.
struct Numbers(BTreeMap<String, f64>);

impl Numbers {
    /// Checks the format on the way: everything is explained before it is told, once, and told once.
    fn of(text: &str) -> Self {
        assert!(text.ends_with('\n'));
        let (mut numbers, mut explained) = (BTreeMap::new(), BTreeSet::new());
        let (mut family, mut kind) = ("", "");
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, meaning) = help.split_once(' ').unwrap();
                assert!(meaning.ends_with('.') && explained.insert(name), "{line}");
                let kind_line = lines.next().unwrap().strip_prefix("# TYPE ").unwrap();
                let (typed, is) = kind_line.split_once(' ').unwrap();
                assert!(["counter", "gauge", "histogram"].contains(&is) && typed == name, "{kind_line}");
                assert_eq!(is == "counter", name.ends_with("_total"), "{kind_line}");
                (family, kind) = (name, is);
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let parts = ["_bucket", "_sum", "_count"];
            let is_part = kind == "histogram" && parts.iter().any(|part| name == format!("{family}{part}"));
            assert!(name == family || is_part, "{line} is not explained");
            let value: f64 = value.parse().unwrap();
            assert!(value.is_finite() && value >= 0.0, "{line}");
            assert!(numbers.insert(series.to_owned(), value).is_none(), "{line} comes twice");
        }
        Self(numbers)
    }

    fn now(dev: &Dev) -> Self {
        let (status, text) = get(&dev.node("admin"), "/metrics");
        assert_eq!(status, 200);
        Self::of(&text)
    }

    fn get(&self, series: &str) -> Option<f64> {
        self.0.get(series).copied()
    }

    fn listed(&self, name: &str) -> usize {
        self.0.keys().filter(|series| series.starts_with(&format!("{name}{{"))).count()
    }
}

#[test]
fn a_group_s_lag_its_dead_letters_and_the_age_of_what_waits_are_told() {
    let dev = Dev::up();
    ok(&dev.run(&["address", "create", "shop.orders", "--attempts", "1"]));
    ok(&dev.run(&["send", "shop.orders", "x", "--count", "9"]));
    ok(&dev.run(&["recv", "shop.orders", "--group", "late", "-n", "1", "--timeout", "20s"]));
    let words = ["recv", "shop.orders", "--group", "till", "-n", "2", "--timeout", "20s", "--from", "start"];
    ok(&dev.run(&words));
    // One is given up, by a consumer that cannot open it.
    let keyring = fs::read_to_string(dev.directory().join("client.keyring")).unwrap();
    let key = keyring.lines().find(|line| line.starts_with("key = ")).unwrap();
    fs::write(dev.path("other"), keyring.replace(key, &format!("key = \"{}\"", "5a".repeat(32)))).unwrap();
    let words = ["recv", "shop.orders", "--group", "till", "-n", "1", "--timeout", "20s"];
    exits(&dev.run(&[&words[..], &["--keyring", "other"]].concat()), 4);

    let of = |name: &str, group: &str| {
        format!("swarmmq_group_{name}{{address=\"shop.orders\",group=\"{group}\"}}")
    };
    let expected = [
        (of("lag_messages", "till"), 5.0),
        (of("lag_messages", "late"), 8.0),
        (of("leased_messages", "till"), 0.0),
        (of("dead_lettered_total", "till"), 1.0),
        (of("dead_lettered_total", "late"), 0.0),
        ("swarmmq_messages_accepted_total".to_owned(), 9.0),
        ("swarmmq_queue_dead_letters".to_owned(), 1.0),
        ("swarmmq_queue_depth".to_owned(), 9.0),
        ("swarmmq_addresses".to_owned(), 1.0),
        ("swarmmq_groups".to_owned(), 2.0),
        ("swarmmq_groups_unlisted".to_owned(), 0.0),
        ("swarmmq_shards".to_owned(), 17.0),
        ("swarmmq_shards_serving".to_owned(), 17.0),
        ("swarmmq_log_stopped".to_owned(), 0.0),
    ];
    let mut numbers = Numbers::now(&dev);
    let wrong = |numbers: &Numbers| -> Vec<_> {
        let told = |series: &str| numbers.get(series);
        expected.iter().filter(|(series, value)| told(series) != Some(*value)).cloned().collect()
    };
    let deadline = std::time::Instant::now() + PATIENCE;
    while !wrong(&numbers).is_empty() {
        assert!(std::time::Instant::now() < deadline, "{:?} in {:#?}", wrong(&numbers), numbers.0);
        numbers = Numbers::now(&dev);
    }
    until("ages grow", PATIENCE, || {
        let numbers = Numbers::now(&dev);
        let ages = [of("lag_seconds", "till"), "swarmmq_queue_oldest_age_seconds".to_owned()];
        ages.iter().all(|age| numbers.get(age).is_some_and(|age| (1.0..100.0).contains(&age)))
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let started = numbers.get("swarmmq_start_time_seconds").unwrap();
    assert!((now - 100.0..=now).contains(&started), "{started}, and now is {now}");
    assert!(numbers.get("swarmmq_disk_free_bytes") > numbers.get("swarmmq_disk_reserve_bytes"));
    assert_eq!(
        numbers.get("swarmmq_log_bytes"),
        numbers.get("swarmmq_log_segments").map(|n| n * (64 << 20) as f64)
    );

    ok(&dev.run(&["recv", "shop.orders", "--group", "till", "-n", "5", "--timeout", "20s"]));
    until("a group that has everything has no lag", PATIENCE, || {
        let numbers = Numbers::now(&dev);
        ["lag_messages", "lag_seconds"].iter().all(|name| numbers.get(&of(name, "till")) == Some(0.0))
    });
    // Given up once is given up for ever; what only the process counted begins anew.
    dev.crash_and_start();
    until("the numbers of groups are back", PATIENCE, || {
        let numbers = Numbers::now(&dev);
        numbers.get(&of("dead_lettered_total", "till")) == Some(1.0)
            && numbers.get(&of("lag_messages", "late")) == Some(8.0)
            && numbers.get("swarmmq_messages_accepted_total") == Some(0.0)
    });
}

#[test]
fn more_groups_than_can_be_listed_are_counted() {
    let dev = Dev::up();
    let keyring = ClientKeyring::load(&dev.directory().join("client.keyring")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = SwarmMq::connect(Options::new(vec![dev.node("client")], keyring)).await.unwrap();
        for n in 0..203 {
            let options = SubscribeOptions { group: format!("g{n}"), ..SubscribeOptions::default() };
            client.subscribe(&format!("a{}", n / 100), options).await.unwrap().close().await;
        }
        client.close().await;
    });
    until("the last group is counted", PATIENCE, || Numbers::now(&dev).get("swarmmq_groups") == Some(203.0));
    let numbers = Numbers::now(&dev);
    for name in ["lag_messages", "lag_seconds", "leased_messages", "dead_lettered_total"] {
        assert_eq!(numbers.listed(&format!("swarmmq_group_{name}")), 200, "{name}");
    }
    assert_eq!(numbers.get("swarmmq_groups_unlisted"), Some(3.0));
    assert!(numbers.0.len() < 1000, "{} numbers", numbers.0.len());
}
