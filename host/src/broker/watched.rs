//! The beats of other workers, as this process sees them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// How often at least a beat goes up in the time of a lease.
pub(super) const BEATS_OF_A_LEASE: u32 = 6;

/// When this process' own beat was written last.
#[derive(Debug, Clone, Default)]
pub(super) struct Written(Arc<Mutex<Option<Instant>>>);

impl Written {
    /// It was written just now.
    pub(super) fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn last(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The beats of others, as this process saw them, and since when each stands still, by this process' own clock.
#[derive(Debug)]
pub(super) struct Watched {
    beats: HashMap<Uuid, (i64, Instant)>,
    looked: Option<Instant>,
    written: Written,
}

impl Watched {
    /// Nobody was seen so far.
    pub(super) fn new(written: Written) -> Self {
        Self { beats: HashMap::new(), looked: None, written }
    }

    /// Who has stood still for `lease`, given the beats that are written now; each with the beat it stood still at.
    pub(super) fn dead(&mut self, beats: &[(Uuid, i64)], lease: Duration) -> Vec<(Uuid, i64)> {
        self.dead_at(beats, lease, Instant::now())
    }

    fn dead_at(&mut self, beats: &[(Uuid, i64)], lease: Duration, now: Instant) -> Vec<(Uuid, i64)> {
        // Who could not look could not see a beat either: the broker may have been away, for everybody.
        let looked_away = self.looked.replace(now).is_some_and(|last| now.duration_since(last) >= lease);
        // And where this process cannot write its own beat, others may not be able to either: a server that is full, or a file that
        // somebody keeps locked, can still be read. Two beats of its own are missing by then.
        let missing = 2 * (lease / BEATS_OF_A_LEASE);
        let has_written = self.written.last().is_some_and(|last| now.saturating_duration_since(last) < missing);
        if looked_away || !has_written {
            self.beats.clear();
        }
        self.beats.retain(|worker, _| beats.iter().any(|(known, _)| known == worker));
        let mut dead = Vec::new();
        for (worker, beat) in beats {
            let seen = self.beats.entry(*worker).or_insert((*beat, now));
            if seen.0 != *beat {
                *seen = (*beat, now);
            } else if now.duration_since(seen.1) >= lease {
                dead.push((*worker, *beat));
            }
        }
        dead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Written {
        fn at(&self, moment: Instant) {
            *self.0.lock().expect("no panic") = Some(moment);
        }
    }

    #[test]
    fn a_beat_that_stands_still_for_the_lease_is_a_dead_workers() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let (living, dead) = (Uuid::new_v4(), Uuid::new_v4());
        let written = Written::default();
        let mut watched = Watched::new(written.clone());
        for round in 0..4_u32 {
            written.at(begin + second * round);
            let found = watched.dead_at(&[(living, round.into()), (dead, 7)], 3 * second, begin + second * round);
            assert_eq!(found, if round < 3 { Vec::new() } else { vec![(dead, 7)] }, "round {round}");
        }
    }

    #[test]
    fn who_could_not_look_for_a_lease_begins_anew() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let worker = Uuid::new_v4();
        let written = Written::default();
        let mut watched = Watched::new(written.clone());
        let mut dead = |at: u32| {
            written.at(begin + second * at);
            watched.dead_at(&[(worker, 7)], 3 * second, begin + second * at)
        };
        assert_eq!(dead(0), Vec::new());
        assert_eq!(dead(2), Vec::new());
        // The broker was away, and the worker could not write its beat.
        assert_eq!(dead(20), Vec::new());
        assert_eq!(dead(22), Vec::new());
        assert_eq!(dead(23), vec![(worker, 7)]);
    }

    #[test]
    fn who_could_not_write_a_beat_of_its_own_begins_anew() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let worker = Uuid::new_v4();
        let written = Written::default();
        let mut watched = Watched::new(written.clone());
        let mut dead = |at: u32| watched.dead_at(&[(worker, 7)], 3 * second, begin + second * at);
        // Who has no beat is no witness at all.
        assert_eq!((0..9).map(&mut dead).find(|dead| !dead.is_empty()), None);
        written.at(begin + 9 * second);
        assert_eq!(dead(9), Vec::new());
        // Full, or locked, for everybody; then this process is the first to write again.
        assert_eq!((10..20).map(&mut dead).find(|dead| !dead.is_empty()), None);
        for at in 20..23 {
            written.at(begin + second * at);
            assert_eq!(dead(at), if at < 22 { Vec::new() } else { vec![(worker, 7)] }, "at {at}");
        }
    }
}
