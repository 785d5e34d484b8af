//! The triggers: the named points at which plugins are asked, with QTasks' names letter for letter.
//!
//! Source: QTasks 1.7.3, "Plugins" documentation; where its code differs from its documents, the documents are followed.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! triggers {
    ($($variant:ident = $name:literal => [$($key:literal),*],)*) => {
        /// A named point at which plugins are asked.
        ///
        /// Written and read as its QTasks name: `"task_executor_run_task_trigger_error"`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Trigger {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
        }

        impl Trigger {
            /// Every trigger, in the order of QTasks' documentation.
            pub const ALL: &'static [Trigger] = &[$(Trigger::$variant,)*];

            /// The name QTasks gives it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Trigger::$variant => $name,)* }
            }

            /// The kwargs that an answer may replace; empty for a one-way trigger, whose answers are ignored.
            #[must_use]
            pub const fn returnable_keys(self) -> &'static [&'static str] {
                match self { $(Trigger::$variant => &[$($key),*],)* }
            }
        }
    };
}

triggers! {
    QtasksAddTaskBeforeBroker = "qtasks_add_task_before_broker" => ["task_name", "priority", "extra", "args", "kw"],
    QtasksAddTaskAfterBroker = "qtasks_add_task_after_broker" => [],
    QtasksGet = "qtasks_get" => ["task"],
    QtasksStop = "qtasks_stop" => [],
    QtasksPing = "qtasks_ping" => [],
    QtasksFlushAll = "qtasks_flush_all" => [],
    BrokerListenStart = "broker_listen_start" => [],
    BrokerAddWorker = "broker_add_worker" => ["task_name", "uuid", "priority", "args", "kw", "created_at"],
    BrokerAddBefore = "broker_add_before" => ["model"],
    BrokerAddAfter = "broker_add_after" => [],
    BrokerGet = "broker_get" => ["task"],
    BrokerUpdate = "broker_update" => ["kw"],
    BrokerStart = "broker_start" => [],
    BrokerStop = "broker_stop" => [],
    BrokerRemoveFinishedTask = "broker_remove_finished_task" => ["model"],
    BrokerRunningOlderTasks = "broker_running_older_tasks" => [],
    BrokerFlushAll = "broker_flush_all" => [],
    StorageAdd = "storage_add" => ["uuid", "task_status"],
    StorageGet = "storage_get" => ["result"],
    StorageGetAll = "storage_get_all" => ["results"],
    StorageUpdate = "storage_update" => ["kw"],
    StorageRemoveFinishedTask = "storage_remove_finished_task" => [],
    StorageStart = "storage_start" => [],
    StorageStop = "storage_stop" => [],
    StorageAddProcess = "storage_add_process" => ["task_data", "priority"],
    StorageRunningOlderTasks = "storage_running_older_tasks" => ["task_name", "uuid", "priority", "created_at", "args", "kw"],
    StorageDeleteFinishedTasks = "storage_delete_finished_tasks" => [],
    StorageFlushAll = "storage_flush_all" => [],
    GlobalConfigSet = "global_config_set" => ["name", "key", "value"],
    GlobalConfigGet = "global_config_get" => ["get"],
    GlobalConfigGetAll = "global_config_get_all" => ["get"],
    GlobalConfigGetMatch = "global_config_get_match" => ["get"],
    GlobalConfigStart = "global_config_start" => [],
    GlobalConfigStop = "global_config_stop" => [],
    GlobalConfigSetStatus = "global_config_set_status" => [],
    StarterStart = "starter_start" => [],
    StarterStop = "starter_stop" => [],
    StatsInspect = "stats_inspect" => [],
    WorkerStart = "worker_start" => [],
    WorkerStop = "worker_stop" => [],
    WorkerAdd = "worker_add" => ["name", "uuid", "priority", "args", "kw", "created_at"],
    WorkerExecuteBefore = "worker_execute_before" => ["model"],
    WorkerRunTaskBefore = "worker_run_task_before" => ["task_func", "task_broker"],
    WorkerTaskErrorRetry = "worker_task_error_retry" => ["model"],
    WorkerRemoveFinishedTask = "worker_remove_finished_task" => ["task_broker", "model"],
    WorkerExecuteAfter = "worker_execute_after" => [],
    TaskExecutorMiddlewaresExecute = "task_executor_middlewares_execute" => [],
    TaskExecutorArgsReplace = "task_executor_args_replace" => ["args", "kw"],
    TaskExecutorBeforeExecute = "task_executor_before_execute" => [],
    TaskExecutorRunTask = "task_executor_run_task" => ["result"],
    TaskExecutorRunTaskGen = "task_executor_run_task_gen" => ["results"],
    TaskExecutorRunTaskTriggerError = "task_executor_run_task_trigger_error" => ["result"],
    TaskExecutorAfterExecute = "task_executor_after_execute" => [],
    TaskExecutorAfterExecuteResultReplace = "task_executor_after_execute_result_replace" => ["result"],
    TaskExecutorDecode = "task_executor_decode" => ["result"],
    TaskExecutorTaskClose = "task_executor_task_close" => [],
}

impl Trigger {
    /// How many triggers there are; [`Trigger::index`] is always below it.
    pub const COUNT: usize = Self::ALL.len();

    /// Its position in [`Trigger::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Finds a trigger by its QTasks name.
    #[must_use]
    pub const fn from_name(name: &str) -> Option<Trigger> {
        let mut index = 0;
        while index < Self::COUNT {
            if same_text(Self::ALL[index].name(), name) {
                return Some(Self::ALL[index]);
            }
            index += 1;
        }
        None
    }
}

const fn same_text(left: &str, right: &str) -> bool {
    let (left, right) = (left.as_bytes(), right.as_bytes());
    if left.len() != right.len() {
        return false;
    }
    let mut index = 0;
    while index < left.len() {
        if left[index] != right[index] {
            return false;
        }
        index += 1;
    }
    true
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Trigger {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Trigger {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Trigger::from_name(&name).ok_or_else(|| serde::de::Error::custom(format_args!("unknown trigger `{name}`")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_finds_its_trigger_and_its_place() {
        for (index, trigger) in Trigger::ALL.iter().enumerate() {
            assert_eq!(Trigger::from_name(trigger.name()), Some(*trigger));
            assert_eq!(trigger.index(), index);
        }
        assert_eq!(Trigger::from_name("task_executor_run_task_trigger_errors"), None);
    }
}
