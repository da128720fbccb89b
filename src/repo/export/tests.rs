//! Tests of the export: the order of blocks, the bounds on memory, and everything that must stop it.

use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::repo::mst::fixtures::{Blocks, Map, any_map, build, keys_on_layer, read};
use crate::repo::mst::{Node, WalkLimits};
use crate::types::Digest;

/// Records by path.
type Records = BTreeMap<String, (Cid, Vec<u8>)>;

/// Rows in memory, and perhaps other ones that every scan after the first few gives instead.
#[derive(Default)]
struct Rows {
    rows: Records,
    changed: Option<(usize, Records)>,
    scans: std::cell::Cell<usize>,
}

impl Rows {
    /// A record of this many bytes at each path; no two alike unless they are short.
    fn new(paths: impl IntoIterator<Item = String>, record_bytes: usize) -> Self {
        let row = |path: String| {
            let bytes: Vec<u8> = path.bytes().rev().cycle().take(record_bytes).collect();
            (path, (Cid::of_block(&bytes), bytes))
        };
        Self {
            rows: paths.into_iter().map(row).collect(),
            ..Self::default()
        }
    }

    fn map(&self) -> Map {
        self.rows
            .iter()
            .map(|(path, (cid, _))| (path.clone(), *cid))
            .collect()
    }

    fn data(&self) -> Cid {
        build(&self.map()).0
    }
}

impl RecordRows for Rows {
    type Error = Infallible;

    fn scan(&self, from: Option<&[u8]>, visit: &mut RowVisitor<'_>) -> Result<(), Infallible> {
        let scan = self.scans.get();
        self.scans.set(scan + 1);
        let rows = match &self.changed {
            Some((first, rows)) if scan >= *first => rows,
            _ => &self.rows,
        };
        let from = String::from_utf8(from.unwrap_or_default().to_vec()).unwrap();
        for (path, (cid, bytes)) in rows.range(from..) {
            if visit(path.as_bytes(), *cid, bytes).is_break() {
                break;
            }
        }
        Ok(())
    }
}

const COMMIT: &[u8] = b"a commit";

fn export(rows: &Rows, limits: ExportLimits) -> Result<Vec<u8>, ExportError<Infallible>> {
    let proven = prove_within(rows, rows.data(), limits)?;
    assert!(proven.kept_bytes() <= limits.kept_bytes_max);
    let mut car = Vec::new();
    let stats = proven.write_car(rows, Cid::of_block(COMMIT), COMMIT, &mut car)?;
    assert_eq!(stats.bytes, car.len() as u64);
    assert_eq!(stats.bytes, proven.car_bytes(COMMIT.len()));
    assert_eq!(stats.records, proven.records());
    assert_eq!(stats.blocks, 1 + stats.nodes + stats.records);
    Ok(car)
}

/// The file that an export must be: pre-order over the whole tree in memory.
fn expected(rows: &Rows) -> Vec<u8> {
    let (root, nodes) = build(&rows.map());
    let mut car = Vec::new();
    let mut writer = car::Writer::begin(&mut car, Cid::of_block(COMMIT)).unwrap();
    writer.block(Cid::of_block(COMMIT), COMMIT).unwrap();
    write_below(&mut writer, root, &nodes, &rows.rows);
    car
}

fn write_below(writer: &mut car::Writer<'_, Vec<u8>>, cid: Cid, nodes: &Blocks, rows: &Records) {
    let block = &nodes[cid.digest()];
    writer.node(cid, block).unwrap();
    let node = Node::decode(block).unwrap();
    node.left()
        .into_iter()
        .for_each(|left| write_below(writer, left, nodes, rows));
    for entry in node.entries() {
        let (_, bytes) = &rows[std::str::from_utf8(entry.key).unwrap()];
        writer.record(entry.value, bytes).unwrap();
        entry
            .right
            .into_iter()
            .for_each(|right| write_below(writer, right, nodes, rows));
    }
}

/// Reads a CAR made here back into its root and blocks.
fn read_car(mut rest: &[u8]) -> (Cid, Vec<(Cid, &[u8])>) {
    let (header, blocks) = rest.split_at(car::HEADER_BYTES as usize);
    let root = Cid::from_bytes(&header[14..50]).unwrap();
    rest = blocks;
    let mut blocks = Vec::new();
    while !rest.is_empty() {
        let mut len = 0;
        for shift in (0..).step_by(7) {
            let byte = rest[0];
            rest = &rest[1..];
            len |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        let (section, after) = rest.split_at(len);
        let cid = Cid::from_bytes(&section[..36]).unwrap();
        assert!(cid.matches(&section[36..]));
        blocks.push((cid, &section[36..]));
        rest = after;
    }
    (root, blocks)
}

/// Limits from ample to so small that several layers are given up and most runs are large.
fn any_limits() -> impl Strategy<Value = ExportLimits> {
    (600..40_000_usize, 0..6_000_usize).prop_map(|(kept_bytes_max, run_bytes_max)| ExportLimits {
        kept_bytes_max,
        run_bytes_max,
    })
}

proptest! {
    #[test]
    fn an_export_is_the_pre_order_of_the_tree_whatever_the_limits(
        map in any_map(400), record_bytes in 0..200_usize, limits in any_limits()
    ) {
        let rows = Rows::new(map.into_keys(), record_bytes);
        let expected = expected(&rows);
        prop_assert_eq!(export(&rows, ExportLimits::default()).unwrap(), expected.clone());
        match export(&rows, limits) {
            Ok(car) => prop_assert_eq!(car, expected),
            Err(ExportError::NodeTooLarge(bytes)) => prop_assert!(bytes < 4_000),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn an_export_reads_back_as_the_same_repository(map in any_map(200)) {
        let rows = Rows::new(map.into_keys(), 40);
        let car = export(&rows, ExportLimits::default()).unwrap();
        let (root, blocks) = read_car(&car);
        prop_assert_eq!(root, Cid::of_block(COMMIT));
        prop_assert_eq!(blocks[0].0, root);
        let blocks: Blocks = blocks.into_iter().map(|(cid, block)| (*cid.digest(), block.to_vec())).collect();
        let map = read(&blocks, rows.data(), &WalkLimits::default()).unwrap();
        prop_assert_eq!(&map, &rows.map());
        for (path, cid) in map {
            prop_assert_eq!(&blocks[cid.digest()], &rows.rows[&path].1);
        }
    }

    #[test]
    fn rows_that_change_after_the_proof_stop_the_export(
        map in any_map(150), which in any::<prop::sample::Index>(), kind in 0..4_u8, limits in any_limits()
    ) {
        prop_assume!(!map.is_empty());
        let limits = ExportLimits { kept_bytes_max: limits.kept_bytes_max + 4_000, ..limits };
        let mut rows = Rows::new(map.into_keys(), 30);
        let mut changed = rows.rows.clone();
        let path = which.get(&changed.keys().cloned().collect::<Vec<_>>()).clone();
        match kind {
            0 => drop(changed.remove(&path)),
            1 => changed.get_mut(&path).unwrap().1.push(0),
            2 => *changed.get_mut(&path).unwrap() = (Cid::of_block(b"other"), b"other".to_vec()),
            _ => drop(changed.insert(format!("{path}-"), changed[&path].clone())),
        }
        rows.changed = Some((1, changed));
        let result = export(&rows, limits);
        let stopped = matches!(result, Err(ExportError::Changed { .. } | ExportError::RecordHash { .. }));
        prop_assert!(stopped, "{:?}", result.map(|car| car.len()));
    }
}

#[test]
fn an_empty_repository_has_its_commit_and_one_node() {
    let rows = Rows::default();
    let car = export(&rows, ExportLimits::default()).unwrap();
    assert_eq!(car, expected(&rows));
    assert_eq!(read_car(&car).1.len(), 2);
}

#[test]
fn a_record_that_two_paths_share_stands_after_both() {
    let rows = Rows::new(
        ["com.example.foo/a".to_owned(), "com.example.foo/b".to_owned()],
        0,
    );
    let car = export(&rows, ExportLimits::default()).unwrap();
    assert_eq!(car, expected(&rows));
    let empty_record = Cid::of_block(b"");
    assert_eq!(
        read_car(&car)
            .1
            .iter()
            .filter(|(cid, _)| *cid == empty_record)
            .count(),
        2
    );
}

/// A sink that must stay dry.
struct NoWrites;

impl io::Write for NoWrites {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        panic!("a byte was written")
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn one_wrong_byte_in_any_record_is_found_before_a_byte_is_written() {
    let good = Rows::new(keys_on_layer(0, 20).into_iter().chain(keys_on_layer(1, 5)), 50);
    let data = good.data();
    for path in good.rows.keys() {
        let mut rows = Rows {
            rows: good.rows.clone(),
            ..Rows::default()
        };
        rows.rows.get_mut(path).unwrap().1[7] ^= 1;
        match prove(&rows, data) {
            Err(ExportError::RecordHash { path: found, .. }) => assert_eq!(&found, path),
            other => panic!("{other:?}"),
        }
    }
    // Records that are good in themselves, but not those that were signed.
    for path in good.rows.keys() {
        let mut rows = Rows {
            rows: good.rows.clone(),
            ..Rows::default()
        };
        rows.rows.remove(path);
        assert!(matches!(prove(&rows, data), Err(ExportError::OtherRoot { signed, .. }) if signed == data));
    }
    let proven = prove(&good, data).unwrap();
    let result = proven.write_car(&good, Cid::of_block(b"another commit"), COMMIT, &mut NoWrites);
    assert!(matches!(result, Err(ExportError::CommitHash(_))));
}

#[test]
fn rows_that_are_no_tree_are_refused() {
    let rows = Rows::new(["no path".to_owned()], 5);
    assert!(matches!(
        prove(&rows, Cid::of_block(b"x")),
        Err(ExportError::Build(BuildError::Key(_)))
    ));
}

#[test]
fn a_failing_store_or_sink_stops_the_export() {
    struct Broken;
    impl RecordRows for Broken {
        type Error = io::Error;
        fn scan(&self, _: Option<&[u8]>, _: &mut RowVisitor<'_>) -> io::Result<()> {
            Err(io::Error::other("the disk is gone"))
        }
    }
    assert!(matches!(
        prove(&Broken, Cid::of_block(b"x")),
        Err(ExportError::Rows(_))
    ));

    let rows = Rows::new(keys_on_layer(0, 20), 50);
    let proven = prove(&rows, rows.data()).unwrap();
    let whole = export(&rows, ExportLimits::default()).unwrap().len();
    for room in [0, 58, 100, whole - 1] {
        let mut buffer = vec![0; room];
        let mut sink = io::Cursor::new(&mut buffer[..]);
        let result = proven.write_car(&rows, Cid::of_block(COMMIT), COMMIT, &mut sink);
        assert!(matches!(result, Err(ExportError::Write(_))), "room for {room}");
    }
    let broken = proven.write_car(&Broken, Cid::of_block(COMMIT), COMMIT, &mut Vec::new());
    assert!(matches!(broken, Err(ExportError::Rows(_))));
}

#[test]
fn a_node_larger_than_all_memory_is_an_error_not_a_loop() {
    let rows = Rows::new(keys_on_layer(0, 20), 50);
    let limits = ExportLimits {
        kept_bytes_max: 500,
        run_bytes_max: 100,
    };
    assert!(matches!(
        export(&rows, limits),
        Err(ExportError::NodeTooLarge(500))
    ));
    // With room for the run, the node need not be kept.
    let limits = ExportLimits {
        run_bytes_max: 10_000,
        ..limits
    };
    assert_eq!(export(&rows, limits).unwrap(), expected(&rows));
}

#[test]
fn a_run_too_large_to_buffer_is_scanned_again() {
    let rows = Rows::new(keys_on_layer(0, 30).into_iter().chain(keys_on_layer(1, 3)), 1000);
    let limits = ExportLimits {
        run_bytes_max: 3_000,
        ..ExportLimits::default()
    };
    assert_eq!(export(&rows, limits).unwrap(), expected(&rows));
    let runs = rows.scans.get();
    assert!(runs > 2, "{runs} scans");
    rows.scans.set(0);
    export(&rows, ExportLimits::default()).unwrap();
    assert_eq!(rows.scans.get(), 2, "one scan a pass");
}

#[test]
fn rows_that_change_in_a_run_of_several_layers_stop_the_export() {
    let paths = (0..3).flat_map(|layer| keys_on_layer(layer, 40));
    let mut rows = Rows::new(paths, 30);
    // Only nodes of layer 2 are kept, so that the runs below are small trees.
    let limits = ExportLimits {
        kept_bytes_max: 6_000,
        run_bytes_max: 1 << 20,
    };
    let kept = Kept::build(&rows, &Range::default(), 1, limits.kept_bytes_max).unwrap();
    assert_eq!((kept.root_layer(), kept.lowest_layer()), (2, 2));
    assert_eq!(export(&rows, limits).unwrap(), expected(&rows));
    for path in keys_on_layer(0, 40).into_iter().chain(keys_on_layer(1, 40)) {
        let mut changed = rows.rows.clone();
        changed.remove(&path);
        rows.scans.set(0);
        rows.changed = Some((1, changed));
        assert!(
            matches!(export(&rows, limits), Err(ExportError::Changed { .. })),
            "{path}"
        );
    }
}

#[test]
fn memory_does_not_grow_with_the_repository() {
    let numbers = |count: u32| (0..count).map(|number| format!("app.bsky.feed.like/{number:013}"));
    let rows = Rows::new(numbers(100_000), 200);
    let data = rows.data();
    let proven = prove(&rows, data).unwrap();
    assert_eq!((proven.records(), proven.record_bytes()), (100_000, 20_000_000));
    // About 25 bytes a record, and what holding a node costs.
    let kept = proven.kept_bytes();
    assert!((2_000_000..4_000_000).contains(&kept), "{kept}");
    let write = |proven: &Proven| {
        let mut hash = HashSink(Vec::new(), [0; 32]);
        proven
            .write_car(&rows, Cid::of_block(COMMIT), COMMIT, &mut hash)
            .unwrap();
        (hash.0.is_empty(), hash.1)
    };
    let digest = write(&proven);
    for kept_bytes_max in [1 << 20, 1 << 16] {
        let limits = ExportLimits {
            kept_bytes_max,
            run_bytes_max: 1 << 18,
        };
        let proven = prove_within(&rows, data, limits).unwrap();
        assert!(proven.kept_bytes() <= kept_bytes_max, "{}", proven.kept_bytes());
        assert_eq!(write(&proven), digest);
    }
}

/// Chains a hash over what is written, in pieces.
struct HashSink(Vec<u8>, Digest);

impl io::Write for HashSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(&self.1);
        self.0.extend_from_slice(bytes);
        self.1 = crate::types::cid::sha256(&self.0);
        self.0.clear();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
