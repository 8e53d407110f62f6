//! Writing families, for the collectors.

use std::{collections::HashMap, fmt};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, exemplar::Exemplar, gauge::ConstGauge},
};

/// Writes one family after the other.
pub(super) struct Families<'a>(pub(super) DescriptorEncoder<'a>);

/// One histogram: its sum, and the counts of its buckets (not cumulative) with their upper bounds.
pub(super) struct Histogram {
    pub(super) sum: f64,
    pub(super) buckets: Vec<(f64, u64)>,
}

impl Families<'_> {
    /// By one label.
    pub(super) fn counters<'l>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        series: impl IntoIterator<Item = (&'l str, u64)>,
    ) -> fmt::Result {
        self.labelled_counters(
            name,
            help,
            series.into_iter().map(|(value, n)| ([(label, value)], n)),
        )
    }

    /// By several labels.
    pub(super) fn labelled_counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([(&'static str, &'l str); N], u64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, n) in series {
            ConstCounter::new(n).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(family)
    }

    pub(super) fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = ([(&'static str, String); N], f64)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(family)
    }

    pub(super) fn histograms<'l>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        series: impl IntoIterator<Item = (&'l str, Histogram)>,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (value, histogram) in series {
            let count = histogram.buckets.iter().map(|(_, n)| n).sum();
            family.encode_family(&[(label, value)])?.encode_histogram(
                histogram.sum,
                count,
                &histogram.buckets,
                None::<&HashMap<usize, Exemplar<NoLabelSet, f64>>>,
            )?;
        }
        Ok(())
    }
}
