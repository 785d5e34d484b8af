//! The names of keys: QTasks' own, byte for byte, and this program's, under another prefix.

use uuid::Uuid;

/// The keys of one project.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) project: String,
    /// QTasks: the items `task_name:uuid:priority` that wait.
    pub(super) queue: String,
    /// QTasks: the items that workers have.
    pub(super) process: String,
    /// Items by the time they are due.
    pub(super) delayed: String,
    /// uuid → `DELIVERY WORKER ITEM`.
    pub(super) leases: String,
    /// Worker → beat.
    pub(super) workers: String,
    /// `TIME UUID` of each record that ended.
    pub(super) ended: String,
    /// Counts deliveries.
    pub(super) deliveries: String,
    /// The names of batches of attempts that failed, by time.
    pub(super) attempts: String,
    /// The channel on which the end of tasks is told.
    pub(super) changed: String,
}

impl Keys {
    pub(super) fn new(project: &str) -> Self {
        let own = |name: &str| format!("qtasks-host:{project}:{name}");
        Self {
            project: project.to_owned(),
            queue: format!("{project}:task_queue"),
            process: format!("{project}:task_process"),
            delayed: own("delayed"),
            leases: own("leases"),
            workers: own("workers"),
            ended: own("ended"),
            deliveries: own("deliveries"),
            attempts: own("attempts"),
            changed: own("changed"),
        }
    }

    /// The hash of a record.
    pub(super) fn record(&self, uuid: Uuid) -> String {
        format!("{}:{uuid}", self.project)
    }

    /// The uuid in a record's key.
    pub(super) fn uuid_of(&self, key: &[u8]) -> Option<Uuid> {
        let uuid = key.strip_prefix(self.project.as_bytes())?.strip_prefix(b":")?;
        // Other spellings of a uuid name no record that QTasks would find.
        (uuid.len() == 36).then(|| Uuid::try_parse_ascii(uuid).ok()).flatten()
    }

    /// A pattern for the keys of records.
    pub(super) fn records(&self) -> String {
        let digits = |count: usize| "?".repeat(count);
        format!("{}:{}-{}-{}-{}-{}", escaped(&self.project), digits(8), digits(4), digits(4), digits(4), digits(12))
    }

    /// Patterns for all keys of the project.
    pub(super) fn all(&self) -> [String; 2] {
        let project = escaped(&self.project);
        [format!("{project}:*"), format!("qtasks-host:{project}:*")]
    }

    /// Whether workers that are there need this key, whatever becomes of the tasks.
    pub(super) fn stays_with_workers(&self, key: &[u8]) -> bool {
        key == self.workers.as_bytes() || key == self.deliveries.as_bytes()
    }

    /// Requests to cancel what this worker has.
    pub(super) fn cancellations(&self, worker: Uuid) -> String {
        format!("qtasks-host:{}:cancel:{worker}", self.project)
    }

    /// The attempts of a batch, each with who was asked about it: JSON, a line each.
    pub(super) fn batch(&self, batch: &str) -> String {
        format!("{}:{batch}", self.attempts)
    }

    /// A number, for as long as nobody takes anything from this worker.
    pub(super) fn claim(&self, worker: Uuid) -> String {
        format!("qtasks-host:{}:claim:{worker}", self.project)
    }

    /// The global config `name`.
    pub(super) fn config(&self, name: &str) -> String {
        format!("{}:GlobalConfig:{name}", self.project)
    }
}

/// A text as a pattern that fits it alone.
fn escaped(text: &str) -> String {
    text.chars().flat_map(|char| "*?[]\\^".contains(char).then_some('\\').into_iter().chain([char])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_told_from_other_keys() {
        let keys = Keys::new("a*b");
        let uuid = Uuid::new_v4();
        assert_eq!(keys.uuid_of(keys.record(uuid).as_bytes()), Some(uuid));
        for other in ["a*b:task_queue", "a*b:GlobalConfig:main", "axb:0b6aecd7-8c0a-4b33-8a4c-0f3ba6a9a3a5", "a*b:", ""] {
            assert_eq!(keys.uuid_of(other.as_bytes()), None, "{other}");
        }
        assert!(keys.records().starts_with("a\\*b:????????-????-"));
    }
}
