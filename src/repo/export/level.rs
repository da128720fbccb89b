//! Pass 2: goes through the kept nodes of a range in pre-order, in step with a scan of its rows.
//!
//! At any moment the writer stands before one entry of one kept node. A row at that entry's path is the
//! entry's record; a row before it belongs to the run that hangs there, whose nodes were not kept.

use std::cmp::Ordering;
use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::types::Cid;

use super::super::mst::{Node, NodeEncoder, TreeBuilder};
use super::kept::{Kept, Range};
use super::{ExportError, ExportLimits, RecordRows, car, is_withheld, show};

/// What buffering a row costs beside its bytes.
const ROW_OVERHEAD_BYTES: usize = size_of::<RunRow>();

/// A subtree that was not kept: its place.
#[derive(Debug, Clone, Copy)]
struct Hanging {
    cid: Cid,
    layer: u32,
}

/// A run too large to buffer: it becomes a level of its own.
pub(super) struct LargeRun {
    range: Range,
    root: Hanging,
}

/// One tree being written: the repository's, or that of a large run inside it.
pub(super) struct Level {
    kept: Arc<Kept>,
    range: Range,
    limits: ExportLimits,
    place: Place,
    /// The kept nodes from the root to where the writer stands.
    stack: Vec<Frame>,
    /// The subtree of the rows before the next entry, if it was not kept.
    hanging: Option<Hanging>,
    run: Run,
}

/// Where the next scan begins.
enum Place {
    /// Nothing is written yet.
    Start,
    /// At this path, after a large run.
    Resume(Vec<u8>),
    /// All rows are written.
    End,
}

struct Frame {
    node: Node,
    layer: u32,
    /// The next entry to write.
    next: usize,
}

/// What a row led to.
enum Step {
    Taken,
    /// The run does not fit; nothing of it is written.
    RunTooLarge,
}

impl Level {
    pub(super) fn new(kept: Arc<Kept>, range: Range, limits: ExportLimits) -> Self {
        Self {
            kept,
            range,
            limits,
            place: Place::Start,
            stack: Vec::new(),
            hanging: None,
            run: Run::default(),
        }
    }

    /// The level of a large run: proves it again, and keeps its lowest nodes too if they fit.
    pub(super) fn of_run<R: RecordRows + ?Sized>(
        rows: &R,
        run: LargeRun,
        limits: ExportLimits,
    ) -> Result<Self, ExportError<R::Error>> {
        let kept = Kept::build_on(rows, &run.range, 0, limits.kept_bytes_max, run.root.layer)?;
        if kept.root() != run.root.cid {
            return Err(changed(run.range.from.as_deref().unwrap_or_default()));
        }
        // With its root kept, whatever does not fit hangs on a lower layer: levels end.
        if kept.get(kept.root()).is_none() {
            return Err(ExportError::NodeTooLarge(limits.kept_bytes_max));
        }
        Ok(Self::new(Arc::new(kept), run.range, limits))
    }

    /// Writes up to the next large run, which is returned, or to the end.
    pub(super) fn advance<R: RecordRows + ?Sized, W: Write>(
        &mut self,
        rows: &R,
        writer: &mut car::Writer<'_, W>,
    ) -> Result<Option<LargeRun>, ExportError<R::Error>> {
        let from = match std::mem::replace(&mut self.place, Place::End) {
            Place::Start => {
                self.open(
                    writer,
                    Hanging {
                        cid: self.kept.root(),
                        layer: self.kept.root_layer(),
                    },
                )?;
                self.range.from.clone()
            }
            Place::Resume(path) => Some(path),
            Place::End => return self.end(writer).map(|()| None),
        };
        let mut large = None;
        let mut failed = None;
        rows.scan(from.as_deref(), &mut |path, cid, bytes| {
            if self.range.ends_before(path) {
                return ControlFlow::Break(());
            }
            match self.row(writer, path, cid, bytes) {
                Ok(Step::Taken) => return ControlFlow::Continue(()),
                Ok(Step::RunTooLarge) => large = self.take_large_run(path),
                Err(error) => failed = Some(error),
            }
            ControlFlow::Break(())
        })
        .map_err(ExportError::Rows)?;
        match (failed, large) {
            (Some(error), _) => Err(error),
            (None, Some(run)) => {
                self.place = run.range.until.clone().map_or(Place::End, Place::Resume);
                Ok(Some(run))
            }
            (None, None) => self.end(writer).map(|()| None),
        }
    }

    /// Writes a node if it was kept, and those down its left side, or remembers what hangs there.
    fn open<E: std::error::Error, W: Write>(
        &mut self,
        writer: &mut car::Writer<'_, W>,
        mut below: Hanging,
    ) -> Result<(), ExportError<E>> {
        loop {
            let Some(block) = self.kept.get(below.cid) else {
                self.hanging = Some(below);
                return Ok(());
            };
            writer.node(below.cid, block)?;
            let node = Node::decode(block).expect("kept nodes were built from checked records");
            let left = node.left();
            self.stack.push(Frame {
                node,
                layer: below.layer,
                next: 0,
            });
            match left {
                Some(cid) => {
                    below = Hanging {
                        cid,
                        layer: below.layer.saturating_sub(1),
                    }
                }
                None => return Ok(()),
            }
        }
    }

    fn row<E: std::error::Error, W: Write>(
        &mut self,
        writer: &mut car::Writer<'_, W>,
        path: &[u8],
        cid: Cid,
        bytes: &[u8],
    ) -> Result<Step, ExportError<E>> {
        self.pop_finished();
        let Some(frame) = self.stack.last_mut() else {
            return self.buffer(path, cid, bytes);
        };
        let entry = frame.node.entry(frame.next).expect("finished nodes were popped");
        match path.cmp(entry.key) {
            Ordering::Less => self.buffer(path, cid, bytes),
            Ordering::Greater => Err(changed(path)),
            Ordering::Equal if entry.value != cid => Err(changed(path)),
            Ordering::Equal => {
                let (right, layer) = (entry.right, frame.layer.saturating_sub(1));
                frame.next += 1;
                self.close_run(writer, path)?;
                write_record(writer, path, cid, bytes)?;
                if let Some(cid) = right {
                    self.open(writer, Hanging { cid, layer })?;
                }
                Ok(Step::Taken)
            }
        }
    }

    fn pop_finished(&mut self) {
        while self
            .stack
            .last()
            .is_some_and(|frame| frame.next >= frame.node.len())
        {
            self.stack.pop();
        }
    }

    /// Keeps a row until the end of its run.
    fn buffer<E: std::error::Error>(
        &mut self,
        path: &[u8],
        cid: Cid,
        bytes: &[u8],
    ) -> Result<Step, ExportError<E>> {
        if self.hanging.is_none() {
            return Err(changed(path));
        }
        let size = self.run.size() + path.len() + bytes.len() + ROW_OVERHEAD_BYTES;
        if size > self.limits.run_bytes_max {
            return Ok(Step::RunTooLarge);
        }
        self.run.push(path, cid, bytes);
        Ok(Step::Taken)
    }

    /// The run that the row at `path` made too large, from its first row to the next kept entry.
    fn take_large_run(&mut self, path: &[u8]) -> Option<LargeRun> {
        let first = self.run.iter().next().map_or(path, |(path, ..)| path).to_vec();
        self.run.clear();
        let next = self.stack.last().and_then(|frame| frame.node.entry(frame.next));
        let until = next
            .map(|entry| entry.key.to_vec())
            .or_else(|| self.range.until.clone());
        let range = Range {
            from: Some(first),
            until,
        };
        self.hanging.take().map(|root| LargeRun { range, root })
    }

    /// Writes the nodes and records of the run that ends before `path`.
    fn close_run<E: std::error::Error, W: Write>(
        &mut self,
        writer: &mut car::Writer<'_, W>,
        path: &[u8],
    ) -> Result<(), ExportError<E>> {
        match self.hanging.take() {
            None => Ok(()),
            Some(Hanging { cid, layer: 0 }) => self.close_leaf_run(writer, cid, path),
            Some(root) => self.close_tree_run(writer, root, path),
        }
    }

    /// A run of layer 0 is a single node.
    fn close_leaf_run<E: std::error::Error, W: Write>(
        &mut self,
        writer: &mut car::Writer<'_, W>,
        expected: Cid,
        path: &[u8],
    ) -> Result<(), ExportError<E>> {
        let mut encoder = NodeEncoder::default();
        for (path, cid, _) in self.run.iter() {
            encoder.push(path, cid);
        }
        let mut block = Vec::new();
        encoder.finish(&mut block);
        if Cid::of_block(&block) != expected {
            return Err(changed(path));
        }
        writer.node(expected, &block)?;
        for (path, cid, bytes) in self.run.iter() {
            write_record(writer, path, cid, bytes)?;
        }
        self.run.clear();
        Ok(())
    }

    /// Where low layers were given up, a run is a small tree: it is built with all its nodes kept.
    fn close_tree_run<E: std::error::Error, W: Write>(
        &mut self,
        writer: &mut car::Writer<'_, W>,
        root: Hanging,
        path: &[u8],
    ) -> Result<(), ExportError<E>> {
        let mut kept = Kept::new(0);
        let mut builder =
            TreeBuilder::new(|layer, cid, block: &[u8]| kept.add(layer, cid, block, usize::MAX));
        for (path, cid, _) in self.run.iter() {
            builder.push(path, cid)?;
        }
        builder.finish_on(root.layer);
        if kept.root() != root.cid {
            return Err(changed(path));
        }
        let run = std::mem::take(&mut self.run);
        let mut level = Self::new(Arc::new(kept), Range::default(), self.limits);
        level.open(writer, root)?;
        for (path, cid, bytes) in run.iter() {
            level.row(writer, path, cid, bytes)?;
        }
        level.end(writer)
    }

    fn end<E: std::error::Error, W: Write>(
        &mut self,
        writer: &mut car::Writer<'_, W>,
    ) -> Result<(), ExportError<E>> {
        self.close_run(writer, self.range.until.clone().unwrap_or_default().as_slice())?;
        self.pop_finished();
        match self.stack.last().and_then(|frame| frame.node.entry(frame.next)) {
            Some(entry) => Err(changed(entry.key)),
            None => Ok(()),
        }
    }
}

/// Every record is hashed once more, right before it goes out.
fn write_record<E: std::error::Error, W: Write>(
    writer: &mut car::Writer<'_, W>,
    path: &[u8],
    cid: Cid,
    bytes: &[u8],
) -> Result<(), ExportError<E>> {
    if is_withheld(&cid, bytes) {
        return Ok(());
    }
    if !cid.matches(bytes) {
        return Err(changed(path));
    }
    Ok(writer.record(cid, bytes)?)
}

fn changed<E: std::error::Error>(path: &[u8]) -> ExportError<E> {
    ExportError::Changed { path: show(path) }
}

/// The rows of a run, in one buffer.
#[derive(Default)]
struct Run {
    data: Vec<u8>,
    rows: Vec<RunRow>,
}

struct RunRow {
    path_end: usize,
    record_end: usize,
    cid: Cid,
}

impl Run {
    fn size(&self) -> usize {
        self.data.len() + self.rows.len() * ROW_OVERHEAD_BYTES
    }

    fn push(&mut self, path: &[u8], cid: Cid, bytes: &[u8]) {
        self.data.extend_from_slice(path);
        let path_end = self.data.len();
        self.data.extend_from_slice(bytes);
        self.rows.push(RunRow {
            path_end,
            record_end: self.data.len(),
            cid,
        });
    }

    fn clear(&mut self) {
        self.data.clear();
        self.rows.clear();
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], Cid, &[u8])> {
        let mut start = 0;
        self.rows.iter().map(move |row| {
            let path = &self.data[start..row.path_end];
            start = row.record_end;
            (path, row.cid, &self.data[row.path_end..row.record_end])
        })
    }
}
