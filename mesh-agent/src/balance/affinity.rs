//! Session affinity: the endpoint of a client, whatever the strategy.

use super::{Target, candidates::Candidates, key::mix};

impl<T: Target> Candidates<'_, T> {
    /// Weighted rendezvous hashing: each target scores by its own hash with the client, so that a target that leaves
    /// moves only its own clients and one that joins takes only its share.
    pub(super) fn by_affinity(&mut self, client: u64) -> Option<usize> {
        if let Some(order) = &mut self.by_affinity {
            return order.pop();
        }
        if self.seen.len() == 0 {
            return self
                .scores(client)
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .map(|(_, position)| position);
        }
        let mut scores: Vec<_> = self
            .scores(client)
            .filter(|&(_, position)| !self.seen.contains(position))
            .collect();
        scores.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut order: Vec<_> = scores.into_iter().map(|(_, position)| position).collect();
        let next = order.pop();
        self.by_affinity = Some(order);
        next
    }

    /// Scores of the targets; the greatest wins with the probability of its share of the weights (`-w / ln(u)`,
    /// Schindelhauer and Schomaker 2005).
    fn scores(&self, client: u64) -> impl Iterator<Item = (f64, usize)> + '_ {
        let targets = self.group().targets(self.targets);
        targets.enumerate().map(move |(position, target)| {
            let hash = mix(client ^ target.key());
            // In (0, 1), never 0 or 1.
            let unit = ((hash >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
            (-f64::from(target.weight()) / unit.ln(), position)
        })
    }
}
