//! Families with one ready-made series for each value of a closed set of labels.

use std::marker::PhantomData;

use prometheus::core::{MetricVec, MetricVecBuilder};

use super::labels::Label;

/// One metric for each value of a label.
pub struct By<M, L> {
    metrics: Vec<M>,
    label: PhantomData<fn(L)>,
}

impl<M: prometheus::core::Metric, L: Label> By<M, L> {
    /// Makes every series of `vec` that begins with `prefix` and goes on with one label of this set.
    pub(in crate::metrics) fn new<B: MetricVecBuilder<M = M>>(vec: &MetricVec<B>, prefix: &[&str]) -> Self {
        let metrics = L::ALL
            .iter()
            .map(|label| vec.with_label_values(&[prefix, &[label.text()]].concat()))
            .collect();
        Self {
            metrics,
            label: PhantomData,
        }
    }

    /// The metric of this value.
    #[must_use]
    pub fn of(&self, label: L) -> &M {
        &self.metrics[label.index()]
    }
}

/// One metric for each pair of values of two labels.
pub struct By2<M, A, B> {
    rows: Vec<By<M, B>>,
    label: PhantomData<fn(A)>,
}

impl<M: prometheus::core::Metric, A: Label, B: Label> By2<M, A, B> {
    /// Makes every series of `vec` that begins with `prefix` and goes on with one label of each set.
    pub(in crate::metrics) fn new<V: MetricVecBuilder<M = M>>(vec: &MetricVec<V>, prefix: &[&str]) -> Self {
        let row = |label: &A| By::new(vec, &[prefix, &[label.text()]].concat());
        Self {
            rows: A::ALL.iter().map(row).collect(),
            label: PhantomData,
        }
    }

    /// The metric of these values.
    #[must_use]
    pub fn of(&self, a: A, b: B) -> &M {
        self.rows[a.index()].of(b)
    }
}
