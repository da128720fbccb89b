//! The contract of a store: every test runs against every engine.

use std::ops::ControlFlow;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::mirror::memory::MemoryStore;

/// Writes each test twice: against the model, and against RocksDB in a folder of its own.
macro_rules! test_each_store {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[test] fn $name() { super::$name(&super::MemoryStore::new()); })*
        }

        #[cfg(feature = "daemon")]
        mod rocks {
            use crate::mirror::rocks::{RocksOptions, RocksStore};

            $(#[test] fn $name() {
                let folder = tempfile::tempdir().unwrap();
                super::$name(&RocksStore::open(folder.path(), &RocksOptions::default()).unwrap());
            })*
        }
    };
}

test_each_store! {
    a_batch_is_visible_whole_and_in_order,
    families_are_apart,
    keys_and_values_may_be_any_bytes,
    scans_go_in_byte_order_both_ways,
    scans_keep_to_their_range,
    scans_stop_when_told,
    scans_see_one_moment,
    ranges_are_deleted_half_open,
    a_range_that_is_no_range_deletes_nothing,
    views_do_not_move,
    bulk_loads_are_read_like_other_rows,
    bulk_loads_refuse_unsorted_rows,
    bulk_loads_refuse_rows_that_are_there,
    bulk_loads_go_between_rows_and_over_deleted_ones,
    bulk_loads_of_nothing_do_nothing,
    compaction_changes_no_row,
    empty_batches_are_fine,
    stats_are_sane,
    random_histories_match_a_map,
}

fn batch(ops: &[(Family, &str, &str)]) -> Batch {
    let mut batch = Batch::new();
    for (family, key, value) in ops {
        batch.put(*family, *key, *value);
    }
    batch
}

fn fill(store: &dyn Store, family: Family, keys: &[&str]) {
    let rows: Vec<_> = keys.iter().map(|key| (family, *key, *key)).collect();
    store.write(batch(&rows)).unwrap();
}

fn get(view: &dyn View, family: Family, key: &str) -> Option<String> {
    view.get(family, key.as_bytes())
        .unwrap()
        .map(|value| String::from_utf8(value).unwrap())
}

fn scan(view: &dyn View, family: Family, range: &KeyRange) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    view.scan(family, range, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    let mut backwards = Vec::new();
    view.scan_reverse(family, range, &mut |key, value| {
        backwards.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    backwards.reverse();
    assert_eq!(rows, backwards, "a reverse scan is a scan reversed");
    rows
}

fn keys(view: &dyn View, family: Family, range: &KeyRange) -> Vec<String> {
    let rows = scan(view, family, range);
    rows.into_iter()
        .map(|(key, _)| String::from_utf8(key).unwrap())
        .collect()
}

fn all(view: &dyn View, family: Family) -> Vec<String> {
    keys(view, family, &KeyRange::all())
}

fn load(store: &dyn Store, family: Family, keys: &[&str]) -> Result<u64, StoreError> {
    let rows = keys
        .iter()
        .map(|key| (key.as_bytes().to_vec(), b"loaded".to_vec()));
    store.bulk_load(family, &mut { rows })
}

fn a_batch_is_visible_whole_and_in_order(store: &dyn Store) {
    let mut batch = Batch::new();
    batch.put(Family::Meta, "kept", "1");
    batch.put(Family::Meta, "gone", "1");
    batch.put(Family::Meta, "back", "1");
    batch.delete(Family::Meta, "gone");
    batch.delete_range(Family::Meta, "a", "c");
    batch.put(Family::Meta, "back", "2");
    batch.put(Family::Hosts, "other", "3");
    assert_eq!(batch.len(), 7);
    store.write_durable(batch).unwrap();
    assert_eq!(get(store, Family::Meta, "kept").as_deref(), Some("1"));
    assert_eq!(get(store, Family::Meta, "gone"), None);
    assert_eq!(get(store, Family::Meta, "back").as_deref(), Some("2"));
    assert_eq!(get(store, Family::Hosts, "other").as_deref(), Some("3"));
}

fn families_are_apart(store: &dyn Store) {
    for family in Family::ALL {
        store.write(batch(&[(family, "key", family.name())])).unwrap();
    }
    for family in Family::ALL {
        assert_eq!(get(store, family, "key").as_deref(), Some(family.name()));
    }
    let mut batch = Batch::new();
    batch.delete_range(Family::Records, "a", "z");
    store.write(batch).unwrap();
    for family in Family::ALL {
        assert_eq!(get(store, family, "key").is_some(), family != Family::Records);
    }
}

fn keys_and_values_may_be_any_bytes(store: &dyn Store) {
    let long = vec![0xfe; 3000];
    let large = vec![7; 1024 * 1024];
    let rows: [(&[u8], &[u8]); 5] = [
        (b"\0", b""),
        (b"\0\0", b"\xff"),
        (&[0xff; 9], b"\0"),
        (&long, b"x"),
        (b"x", &large),
    ];
    for family in [Family::Records, Family::BlobData, Family::Accounts] {
        let mut batch = Batch::new();
        for (key, value) in rows {
            batch.put(family, key, value);
        }
        store.write(batch).unwrap();
        for (key, value) in rows {
            assert_eq!(store.get(family, key).unwrap().as_deref(), Some(value));
        }
        let mut want: Vec<_> = rows
            .iter()
            .map(|(key, value)| (key.to_vec(), value.to_vec()))
            .collect();
        want.sort();
        assert_eq!(scan(store, family, &KeyRange::all()), want);
        assert_eq!(scan(store, family, &KeyRange::prefix([0xff; 9])).len(), 1);
        assert_eq!(scan(store, family, &KeyRange::prefix([0])).len(), 2);
    }
}

fn scans_go_in_byte_order_both_ways(store: &dyn Store) {
    for family in Family::ALL {
        let before = all(store, family).len();
        fill(store, family, &["b/1", "b.c/1", "b-c/1", "B/1", "b", "ba", "b/"]);
        let found = all(store, family);
        let found: Vec<_> = found.iter().filter(|key| key.as_str() != "version").collect();
        assert_eq!(
            found,
            ["B/1", "b", "b-c/1", "b.c/1", "b/", "b/1", "ba"],
            "{family}"
        );
        assert!(before <= 1, "only the version row stood there");
    }
}

fn scans_keep_to_their_range(store: &dyn Store) {
    fill(store, Family::Hosts, &["a", "ab", "abc", "b", "ba", "c"]);
    let found = |range: KeyRange| keys(store, Family::Hosts, &range);
    assert_eq!(found(KeyRange::all()).len(), 6);
    assert_eq!(found(KeyRange::new("ab", "ba")), ["ab", "abc", "b"]);
    assert_eq!(found(KeyRange::new("aa", "bz")), ["ab", "abc", "b", "ba"]);
    assert_eq!(found(KeyRange::prefix("a")), ["a", "ab", "abc"]);
    assert_eq!(found(KeyRange::prefix("a").starting_at(b"ab")), ["ab", "abc"]);
    assert_eq!(found(KeyRange::prefix("a").after(b"ab")), ["abc"]);
    assert_eq!(found(KeyRange::all().after(b"b")), ["ba", "c"]);
    for nothing in [
        KeyRange::new("b", "b"),
        KeyRange::new("c", "a"),
        KeyRange::prefix("bb"),
        KeyRange::all().after(b"c"),
    ] {
        assert!(found(nothing.clone()).is_empty(), "{nothing:?}");
    }
}

fn scans_stop_when_told(store: &dyn Store) {
    fill(store, Family::Hosts, &["a", "b", "c"]);
    let mut seen = Vec::new();
    let mut visit = |key: &[u8], _: &[u8]| {
        seen.push(key[0]);
        if seen.len() % 2 == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    store.scan(Family::Hosts, &KeyRange::all(), &mut visit).unwrap();
    store
        .scan_reverse(Family::Hosts, &KeyRange::all(), &mut visit)
        .unwrap();
    assert_eq!(seen, *b"abcb");
}

fn scans_see_one_moment(store: &dyn Store) {
    fill(store, Family::Hosts, &["a", "b", "c"]);
    let mut seen = Vec::new();
    store
        .scan(Family::Hosts, &KeyRange::all(), &mut |key, _| {
            seen.push(key[0]);
            let mut batch = batch(&[(Family::Hosts, "bb", "new")]);
            batch.delete(Family::Hosts, "c");
            store.write(batch).unwrap();
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, *b"abc");
    assert_eq!(all(store, Family::Hosts), ["a", "b", "bb"]);
}

fn ranges_are_deleted_half_open(store: &dyn Store) {
    for family in [Family::Hosts, Family::Records] {
        fill(store, family, &["a", "b", "ba", "c", "ca"]);
        let mut batch = Batch::new();
        batch.delete_range(family, "b", "c");
        store.write(batch).unwrap();
        assert_eq!(all(store, family), ["a", "c", "ca"]);
        assert_eq!(get(store, family, "ba"), None);
        fill(store, family, &["ba"]);
        assert_eq!(all(store, family), ["a", "ba", "c", "ca"]);
    }
}

fn a_range_that_is_no_range_deletes_nothing(store: &dyn Store) {
    fill(store, Family::Hosts, &["a", "b"]);
    let mut batch = Batch::new();
    batch.delete_range(Family::Hosts, "b", "a");
    batch.delete_range(Family::Hosts, "a", "a");
    assert!(batch.is_empty());
    batch.delete(Family::Hosts, "never there");
    store.write(batch).unwrap();
    assert_eq!(all(store, Family::Hosts), ["a", "b"]);
}

fn views_do_not_move(store: &dyn Store) {
    fill(store, Family::Records, &["a", "b", "c"]);
    let view = store.view();
    let mut later = batch(&[(Family::Records, "a", "new"), (Family::Records, "d", "new")]);
    later.delete_range(Family::Records, "b", "c");
    store.write_durable(later).unwrap();
    load(store, Family::Records, &["e", "f"]).unwrap();
    assert_eq!(all(&*view, Family::Records), ["a", "b", "c"]);
    assert_eq!(get(&*view, Family::Records, "a").as_deref(), Some("a"));
    assert_eq!(get(&*view, Family::Records, "b").as_deref(), Some("b"));
    assert_eq!(get(&*view, Family::Records, "e"), None);
    assert_eq!(all(store, Family::Records), ["a", "c", "d", "e", "f"]);
    assert_eq!(all(&*store.view(), Family::Records), ["a", "c", "d", "e", "f"]);
}

fn bulk_loads_are_read_like_other_rows(store: &dyn Store) {
    assert_eq!(load(store, Family::Records, &["b", "c", "d"]), Ok(3));
    fill(store, Family::Records, &["a", "e"]);
    assert_eq!(all(store, Family::Records), ["a", "b", "c", "d", "e"]);
    let mut batch = batch(&[(Family::Records, "b", "changed")]);
    batch.delete(Family::Records, "c");
    store.write(batch).unwrap();
    assert_eq!(get(store, Family::Records, "b").as_deref(), Some("changed"));
    assert_eq!(all(store, Family::Records), ["a", "b", "d", "e"]);
}

fn bulk_loads_refuse_unsorted_rows(store: &dyn Store) {
    for (rows, row) in [(["a", "c", "b"], 2), (["a", "a", "b"], 1)] {
        let family = Family::Records;
        assert_eq!(
            load(store, family, &rows),
            Err(StoreError::Unsorted { family, row })
        );
        assert!(all(store, family).is_empty(), "nothing of it is loaded");
    }
}

fn bulk_loads_refuse_rows_that_are_there(store: &dyn Store) {
    let family = Family::Records;
    fill(store, family, &["m", "p"]);
    for (rows, row) in [
        (["a", "m", "n"], 1),
        (["a", "b", "n"], 2),
        (["n", "o", "q"], 2),
        (["p", "q", "r"], 0),
    ] {
        assert_eq!(
            load(store, family, &rows),
            Err(StoreError::NotEmpty { family, row }),
            "{rows:?}"
        );
    }
    assert_eq!(all(store, family), ["m", "p"], "nothing of it is loaded");
    assert_eq!(
        load(store, Family::BlobRefs, &["m", "p"]),
        Ok(2),
        "another family does not matter"
    );
}

fn bulk_loads_go_between_rows_and_over_deleted_ones(store: &dyn Store) {
    fill(store, Family::Records, &["a", "m", "n", "z"]);
    let mut batch = Batch::new();
    batch.delete(Family::Records, "m");
    batch.delete_range(Family::Records, "n", "o");
    store.write(batch).unwrap();
    assert_eq!(load(store, Family::Records, &["b", "m", "n", "y"]), Ok(4));
    assert_eq!(all(store, Family::Records), ["a", "b", "m", "n", "y", "z"]);
}

fn bulk_loads_of_nothing_do_nothing(store: &dyn Store) {
    assert_eq!(load(store, Family::Records, &[]), Ok(0));
    assert!(all(store, Family::Records).is_empty());
}

fn compaction_changes_no_row(store: &dyn Store) {
    for family in Family::ALL {
        fill(store, family, &["a", "b", "c", "d"]);
        let mut batch = batch(&[(family, "a", "changed")]);
        batch.delete_range(family, "b", "d");
        store.write(batch).unwrap();
        let before = scan(store, family, &KeyRange::all());
        store.compact_range(family, &KeyRange::new("b", "d")).unwrap();
        assert_eq!(scan(store, family, &KeyRange::all()), before);
        store.compact_range(family, &KeyRange::all()).unwrap();
        assert_eq!(scan(store, family, &KeyRange::all()), before);
    }
}

fn empty_batches_are_fine(store: &dyn Store) {
    store.write(Batch::new()).unwrap();
    let durable = store.write_durable(Batch::new()).unwrap();
    assert_eq!(*durable.with(7).get(), 7);
    assert_eq!(durable.with("x").into_inner(), "x");
}

fn stats_are_sane(store: &dyn Store) {
    fill(store, Family::Records, &["a", "b"]);
    let stats = store.stats();
    assert!(stats.memory_bytes > 0);
    assert!(!stats.stalled);
    assert_eq!(stats.background_errors, 0);
}

/// One step of a random history, over few keys so that they meet.
#[derive(Debug, Clone)]
enum Step {
    Write(Vec<(Family, Change)>, bool),
    Load(Family, Vec<Vec<u8>>),
    Compact(Family),
}

#[derive(Debug, Clone)]
enum Change {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
}

fn any_family() -> impl Strategy<Value = Family> {
    prop::sample::select(vec![
        Family::Records,
        Family::BlobRefs,
        Family::BlobData,
        Family::Accounts,
    ])
}

/// Keys around the lengths of the prefixes that RocksDB indexes: 0 to 12 bytes, and 38 to 42.
fn any_key() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop::sample::select(vec![0, 1, 0xff]);
    prop_oneof![
        3 => prop::collection::vec(byte, 0..3),
        3 => (0..3u8, prop::collection::vec(0..3u8, 0..4)).prop_map(|(number, tail)| {
            let mut key = vec![0, 0, 0, 0, 0, 0, 0, number];
            key.extend(tail);
            key
        }),
        1 => (0..2u8, 38..43usize).prop_map(|(byte, len)| vec![byte; len]),
    ]
}

fn any_change() -> impl Strategy<Value = Change> {
    let value = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..4),
        1 => (any::<u8>(), 4000..9000usize).prop_map(|(byte, len)| vec![byte; len]),
    ];
    prop_oneof![
        4 => (any_key(), value).prop_map(|(key, value)| Change::Put(key, value)),
        1 => any_key().prop_map(Change::Delete),
        1 => (any_key(), any_key()).prop_map(|(from, to)| Change::DeleteRange(from, to)),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    let changes = prop::collection::vec((any_family(), any_change()), 0..6);
    let keys = prop::collection::btree_set(any_key(), 0..5);
    prop_oneof![
        6 => (changes, any::<bool>()).prop_map(|(changes, sync)| Step::Write(changes, sync)),
        2 => (any_family(), keys).prop_map(|(family, keys)| Step::Load(family, keys.into_iter().collect())),
        1 => any_family().prop_map(Step::Compact),
    ]
}

fn run(store: &dyn Store, step: Step) -> Result<u64, StoreError> {
    match step {
        Step::Write(changes, sync) => {
            let mut batch = Batch::new();
            for (family, change) in changes {
                match change {
                    Change::Put(key, value) => batch.put(family, key, value),
                    Change::Delete(key) => batch.delete(family, key),
                    Change::DeleteRange(from, to) => batch.delete_range(family, from, to),
                }
            }
            match sync {
                true => store
                    .write_durable(batch)
                    .map(|durable| durable.with(0).into_inner()),
                false => store.write(batch).map(|()| 0),
            }
        }
        Step::Load(family, keys) => {
            store.bulk_load(family, &mut keys.into_iter().map(|key| (key, b"loaded".to_vec())))
        }
        Step::Compact(family) => store.compact_range(family, &KeyRange::all()).map(|()| 0),
    }
}

/// What the store is after each step, in full and in random ranges, is what a fresh model is.
fn random_histories_match_a_map(store: &dyn Store) {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(48)
    });
    let histories = (
        prop::collection::vec(any_step(), 1..20),
        prop::collection::vec((any_key(), any_key()), 4),
    );
    let families = [
        Family::Records,
        Family::BlobRefs,
        Family::BlobData,
        Family::Accounts,
    ];
    let ran = runner.run(&histories, |(steps, ranges)| {
        let mut wipe = Batch::new();
        for family in families {
            wipe.delete(family, vec![]);
            wipe.delete_range(family, vec![0], vec![0xff; 64]);
        }
        store.write(wipe).unwrap();
        let model = MemoryStore::new();
        for step in steps {
            prop_assert_eq!(run(store, step.clone()), run(&model, step));
        }
        let mut ranges: Vec<_> = ranges
            .into_iter()
            .flat_map(|(from, to)| [KeyRange::new(from.clone(), to), KeyRange::prefix(from)])
            .collect();
        ranges.push(KeyRange::all());
        for family in families {
            for range in &ranges {
                prop_assert_eq!(
                    scan(store, family, range),
                    scan(&model, family, range),
                    "{:?}",
                    range
                );
            }
            for (key, value) in scan(&model, family, &KeyRange::all()) {
                prop_assert_eq!(store.get(family, &key), Ok(Some(value)));
            }
        }
        Ok(())
    });
    ran.unwrap();
}

#[test]
fn ranges_know_their_ends() {
    assert_eq!(KeyRange::prefix([1, 0xff]).to(), Some(&[2][..]));
    assert_eq!(KeyRange::prefix([0xff, 0xff]).to(), None);
    assert_eq!(KeyRange::prefix([]), KeyRange::all());
    let range = KeyRange::new("b", "d");
    for (key, inside) in [("a", false), ("b", true), ("c", true), ("cz", true), ("d", false)] {
        assert_eq!(range.contains(key.as_bytes()), inside, "{key}");
    }
    assert!(KeyRange::all().contains(b"") && !KeyRange::all().is_empty());
    assert_eq!(range.clone().starting_at(b"a"), range, "a range never grows");
}

#[test]
fn ranges_know_their_prefix() {
    assert!(KeyRange::prefix("abcd").within_prefix(4));
    assert!(KeyRange::prefix("abcde").within_prefix(4));
    assert!(KeyRange::prefix("abcd").starting_at(b"abcdx").within_prefix(4));
    assert!(KeyRange::prefix([0xff; 4]).within_prefix(4));
    assert!(!KeyRange::prefix("abc").within_prefix(4));
    assert!(!KeyRange::new("abcd", "abcf").within_prefix(4));
    assert!(!KeyRange::new("abcd", "abcea").within_prefix(4));
    assert!(!KeyRange::all().starting_at(b"abcd").within_prefix(4));
}

#[test]
fn a_batch_knows_its_size() {
    let mut first = batch(&[(Family::Meta, "key", "value")]);
    first.delete(Family::Meta, "k");
    assert_eq!((first.bytes(), first.len()), (9, 2));
    let mut second = Batch::new();
    second.delete_range(Family::Meta, "aa", "bb");
    first.append(second);
    assert_eq!((first.bytes(), first.len()), (13, 3));
}

#[test]
fn newer_and_unreadable_formats_are_refused() {
    let path = Path::new("/data/mirror");
    let check = |version: Option<u64>, rows| {
        let bytes = version.map(u64::to_be_bytes);
        check_format(path, bytes.as_ref().map(<[u8; 8]>::as_slice), rows)
    };
    assert_eq!(check(None, false), Ok(Format::Fresh));
    assert_eq!(check(Some(FORMAT_VERSION), true), Ok(Format::Current));
    assert_eq!(check(Some(FORMAT_VERSION), false), Ok(Format::Current));
    let newer = check(Some(FORMAT_VERSION + 1), true).unwrap_err();
    assert!(matches!(newer, StoreError::Newer { found, .. } if found == FORMAT_VERSION + 1));
    let text = newer.to_string();
    assert!(
        text.contains("/data/mirror") && text.contains("newer Firekeep"),
        "{text}"
    );
    for corrupt in [
        check(None, true),
        check(Some(0), true),
        check_format(path, Some(b"1"), true),
    ] {
        assert!(matches!(corrupt, Err(StoreError::Corrupt { .. })), "{corrupt:?}");
    }
}

#[test]
fn family_names_are_distinct_and_stable() {
    let names: Vec<_> = Family::ALL.iter().map(|family| family.name()).collect();
    let stable = "meta hosts accounts records parked journal outbox blob_refs blobs blob_data tasks alarms";
    assert_eq!(names.join(" "), stable);
}

#[test]
fn bad_rows_show_a_short_key() {
    let text = StoreError::bad_row(Family::Records, &[0xab; 1000], "too long").to_string();
    assert!(
        text.contains("records") && text.contains("too long") && text.contains("abab…"),
        "{text}"
    );
    assert!(text.len() < 400, "{text}");
}
