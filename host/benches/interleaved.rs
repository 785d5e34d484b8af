//! Two things measured in turn, so that a machine that changes its speed changes both.

use std::time::{Duration, Instant};

use crate::support::median;

/// The medians of two measurements, and of their ratio within each round.
pub(crate) struct Compared {
    pub(crate) left: Duration,
    pub(crate) right: Duration,
    pub(crate) ratio: f64,
}

/// Runs `left` and `right` in turn, `iterations` calls each a round; the times are for one call.
pub(crate) fn compare(rounds: usize, iterations: u32, mut left: impl FnMut(), mut right: impl FnMut()) -> Compared {
    let mut measured: Vec<(Duration, Duration)> = Vec::with_capacity(rounds);
    for round in 0..=rounds {
        let times = (time(iterations, &mut left), time(iterations, &mut right));
        // The first round warms up.
        if round > 0 {
            measured.push(times);
        }
    }
    Compared {
        left: median(measured.iter().map(|(left, _)| *left)),
        right: median(measured.iter().map(|(_, right)| *right)),
        ratio: median(measured.iter().map(|(left, right)| left.div_duration_f64(*right))),
    }
}

fn time(iterations: u32, call: &mut impl FnMut()) -> Duration {
    let begun = Instant::now();
    for _ in 0..iterations {
        call();
    }
    begun.elapsed() / iterations
}
