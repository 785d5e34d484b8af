//! The beats of other workers, as this process sees them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

/// The beats of others, as this process saw them, and since when each stands still, by this process' own clock.
#[derive(Debug, Default)]
pub(super) struct Watched {
    beats: HashMap<Uuid, (i64, Instant)>,
    looked: Option<Instant>,
}

impl Watched {
    /// Who has stood still for `lease`, given the beats that are written now; each with the beat it stood still at.
    pub(super) fn dead(&mut self, beats: &[(Uuid, i64)], lease: Duration) -> Vec<(Uuid, i64)> {
        self.dead_at(beats, lease, Instant::now())
    }

    fn dead_at(&mut self, beats: &[(Uuid, i64)], lease: Duration, now: Instant) -> Vec<(Uuid, i64)> {
        // Who could not look could not see a beat either: the broker may have been away, for everybody.
        let looked_away = self.looked.replace(now).is_some_and(|last| now.duration_since(last) >= lease);
        if looked_away {
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

    #[test]
    fn a_beat_that_stands_still_for_the_lease_is_a_dead_workers() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let (living, dead) = (Uuid::new_v4(), Uuid::new_v4());
        let mut watched = Watched::default();
        for round in 0..4_u32 {
            let found = watched.dead_at(&[(living, round.into()), (dead, 7)], 3 * second, begin + second * round);
            assert_eq!(found, if round < 3 { Vec::new() } else { vec![(dead, 7)] }, "round {round}");
        }
    }

    #[test]
    fn who_could_not_look_for_a_lease_begins_anew() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let worker = Uuid::new_v4();
        let mut watched = Watched::default();
        let mut dead = |at: u32| watched.dead_at(&[(worker, 7)], 3 * second, begin + second * at);
        assert_eq!(dead(0), Vec::new());
        assert_eq!(dead(2), Vec::new());
        // The broker was away, and the worker could not write its beat.
        assert_eq!(dead(20), Vec::new());
        assert_eq!(dead(22), Vec::new());
        assert_eq!(dead(23), vec![(worker, 7)]);
    }
}
