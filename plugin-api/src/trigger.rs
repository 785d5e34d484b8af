//! The triggers: the named points at which plugins are asked, with QTasks' names letter for letter.
//!
//! Source: QTasks 1.7.3, "Plugins" documentation; where its code differs from its documents, the documents are followed.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! triggers {
    ($($component:ident {
        $($variant:ident = $name:literal [$($kwarg:literal),*] => [$($key:literal),*] when $when:literal,)*
    })*) => {
        /// A named point at which plugins are asked.
        ///
        /// Written and read as its QTasks name: `"task_executor_run_task_trigger_error"`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Trigger {
            $($(
                #[doc = concat!("`", $name, "`: ", $when, ".")]
                ///
                #[doc = concat!("kwargs: ", $("`", $kwarg, "` ",)* "")]
                $variant,
            )*)*
        }

        impl Trigger {
            /// Every trigger, in the order of QTasks' documentation.
            pub const ALL: &'static [Trigger] = &[$($(Trigger::$variant,)*)*];

            /// The name QTasks gives it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $($(Trigger::$variant => $name,)*)* }
            }

            /// The QTasks component that fires it.
            #[must_use]
            pub const fn component(self) -> &'static str {
                match self { $($(Trigger::$variant)|* => stringify!($component),)* }
            }

            /// The kwargs that come with it, all of them: components are JSON descriptions of themselves.
            #[must_use]
            pub const fn kwargs(self) -> &'static [&'static str] {
                match self { $($(Trigger::$variant => &[$($kwarg),*],)*)* }
            }

            /// The kwargs that an answer may replace; empty for a one-way trigger, whose answers are ignored.
            #[must_use]
            pub const fn returnable_keys(self) -> &'static [&'static str] {
                match self { $($(Trigger::$variant => &[$($key),*],)*)* }
            }

            /// When it is fired, in words that follow "fired".
            #[must_use]
            pub const fn when(self) -> &'static str {
                match self { $($(Trigger::$variant => $when,)*)* }
            }
        }
    };
}

triggers! {
    QueueTasks {
        QtasksAddTaskBeforeBroker = "qtasks_add_task_before_broker"
            ["qtasks", "broker", "task_name", "priority", "args", "kw"] => ["task_name", "priority", "extra", "args", "kw"]
            when "before a client adds a task; `extra` is an object of fields to keep with it",
        QtasksAddTaskAfterBroker = "qtasks_add_task_after_broker"
            ["qtasks", "broker", "task_name", "priority", "args", "kwargs"] => []
            when "after a client added a task",
        QtasksGet = "qtasks_get"
            ["qtasks", "broker", "task"] => ["task"]
            when "when a client reads a task",
        QtasksStop = "qtasks_stop"
            ["qtasks", "starter"] => []
            when "when a client asks the application to stop; `starter` is null where it runs elsewhere",
        QtasksPing = "qtasks_ping"
            ["qtasks", "global_config"] => []
            when "when a client asks whether a worker is there",
        QtasksFlushAll = "qtasks_flush_all"
            ["qtasks", "broker"] => []
            when "before a client removes everything",
    }
    Broker {
        BrokerListenStart = "broker_listen_start"
            ["broker", "worker"] => []
            when "when a worker begins to take tasks, after everything else has started",
        BrokerAddWorker = "broker_add_worker"
            ["broker", "worker", "task_name", "uuid", "priority", "args", "kw", "created_at"]
            => ["task_name", "uuid", "priority", "args", "kw", "created_at"]
            when "when a task is handed to a worker",
        BrokerAddBefore = "broker_add_before"
            ["broker", "storage", "model"] => ["model"]
            when "before a task is added",
        BrokerAddAfter = "broker_add_after"
            ["broker", "storage", "model"] => []
            when "after a task was added",
        BrokerGet = "broker_get"
            ["broker", "task"] => ["task"]
            when "when a task is read, after the storage was asked",
        BrokerUpdate = "broker_update"
            ["broker", "kw"] => ["kw"]
            when "before fields of a record are written; `kw` has its `name` and the `mapping` of fields, each answered alone or both",
        BrokerStart = "broker_start"
            ["broker", "worker"] => []
            when "when a worker starts",
        BrokerStop = "broker_stop"
            ["broker"] => []
            when "when a worker stopped, last of all",
        BrokerRemoveFinishedTask = "broker_remove_finished_task"
            ["broker", "storage", "model"] => ["model"]
            when "before what became of a task is recorded",
        BrokerRunningOlderTasks = "broker_running_older_tasks"
            ["broker", "worker"] => []
            when "whenever a worker looks for tasks of lost workers",
        BrokerFlushAll = "broker_flush_all"
            ["broker"] => []
            when "before everything is removed",
    }
    Storage {
        StorageAdd = "storage_add"
            ["storage", "uuid", "task_status"] => ["uuid", "task_status"]
            when "before the record of a new task is written; `task_status` is the record",
        StorageGet = "storage_get"
            ["storage", "result"] => ["result"]
            when "when a record is read",
        StorageGetAll = "storage_get_all"
            ["storage", "results"] => ["results"]
            when "when records are listed; those that the answer leaves out are left out",
        StorageUpdate = "storage_update"
            ["storage", "kw"] => ["kw"]
            when "before fields of a record are written, after the broker was asked",
        StorageRemoveFinishedTask = "storage_remove_finished_task"
            ["storage", "task_broker", "model"] => []
            when "after what became of a task was recorded",
        StorageStart = "storage_start"
            ["storage"] => []
            when "when a worker starts, after the broker",
        StorageStop = "storage_stop"
            ["storage"] => []
            when "when a worker stopped, before the broker",
        StorageAddProcess = "storage_add_process"
            ["storage", "task_data", "priority"] => ["task_data", "priority"]
            when "when a task is taken off the queue; `task_data` is its queue item, `task_name:uuid:priority`",
        StorageRunningOlderTasks = "storage_running_older_tasks"
            ["storage", "worker", "task_name", "uuid", "priority", "args", "kw", "created_at"]
            => ["task_name", "uuid", "priority", "created_at", "args", "kw"]
            when "for each task of a lost worker, before it waits again",
        StorageDeleteFinishedTasks = "storage_delete_finished_tasks"
            ["storage"] => []
            when "before ended records are removed: all of them, or, by a worker now and then, those that are old enough",
        StorageFlushAll = "storage_flush_all"
            ["storage"] => []
            when "before everything is removed, after the broker was asked",
    }
    GlobalConfig {
        GlobalConfigSet = "global_config_set"
            ["global_config", "name", "name_", "key", "value"] => ["name", "key", "value"]
            when "before a value is written; `name_` is `name` as QTasks passes it",
        GlobalConfigGet = "global_config_get"
            ["global_config", "get"] => ["get"]
            when "when a value is read, the one behind a ping among them; null is none",
        GlobalConfigGetAll = "global_config_get_all"
            ["global_config", "get"] => ["get"]
            when "when all values are read",
        GlobalConfigGetMatch = "global_config_get_match"
            ["global_config", "get"] => ["get"]
            when "when the values whose keys begin alike are read",
        GlobalConfigStart = "global_config_start"
            ["global_config"] => []
            when "when a worker starts, after the storage",
        GlobalConfigStop = "global_config_stop"
            ["global_config"] => []
            when "when a worker stopped, before the storage",
        GlobalConfigSetStatus = "global_config_set_status"
            ["global_config"] => []
            when "whenever a worker says that it is there",
    }
    Starter {
        StarterStart = "starter_start"
            ["starter"] => []
            when "before an application starts its worker",
        StarterStop = "starter_stop"
            ["starter"] => []
            when "after an application's worker stopped, before the plugins stop",
    }
    Stats {
        StatsInspect = "stats_inspect"
            ["stats"] => []
            when "when somebody looks at the application",
    }
    Worker {
        WorkerStart = "worker_start"
            ["worker"] => []
            when "when a worker starts, first of all",
        WorkerStop = "worker_stop"
            ["worker"] => []
            when "when a worker took, finished or gave back its last task",
        WorkerAdd = "worker_add"
            ["worker", "name", "task_name", "uuid", "priority", "args", "kw", "created_at"]
            => ["name", "uuid", "priority", "args", "kw", "created_at"]
            when "when a task has come to a worker; `name` is `task_name` as it is answered",
        WorkerExecuteBefore = "worker_execute_before"
            ["worker", "task_broker", "task_func", "model"] => ["model"]
            when "before an attempt; `task_func` is null for a task that nobody provides",
        WorkerRunTaskBefore = "worker_run_task_before"
            ["worker", "task_func", "task_broker"] => ["task_func", "task_broker"]
            when "right before an attempt; what is answered holds for this attempt and is not recorded",
        WorkerTaskErrorRetry = "worker_task_error_retry"
            ["broker", "task_func", "task_broker", "trace", "model"] => ["model"]
            when "after an attempt that another one follows",
        WorkerRemoveFinishedTask = "worker_remove_finished_task"
            ["worker", "broker", "task_func", "task_broker", "model"] => ["task_broker", "model"]
            when "after the last attempt, before the broker is asked",
        WorkerExecuteAfter = "worker_execute_after"
            ["task_func", "task_broker", "model"] => []
            when "after what became of an attempt was recorded, and the storage told of an end",
    }
    TaskExecutor {
        TaskExecutorMiddlewaresExecute = "task_executor_middlewares_execute"
            ["task_executor", "middlewares_before", "middlewares_after"] => []
            when "twice: with `middlewares_before` alone after those ran, and with `middlewares_after` alone after those",
        TaskExecutorArgsReplace = "task_executor_args_replace"
            ["task_executor", "args", "kw", "args_info"] => ["args", "kw"]
            when "before the task's body",
        TaskExecutorBeforeExecute = "task_executor_before_execute"
            ["task_executor"] => []
            when "before the task's body, when its arguments are settled",
        TaskExecutorRunTask = "task_executor_run_task"
            ["task_executor", "result"] => ["result"]
            when "after the task's body returned",
        TaskExecutorRunTaskGen = "task_executor_run_task_gen"
            ["task_executor", "results"] => ["results"]
            when "instead of `task_executor_run_task` for a task that yields: after the last one",
        TaskExecutorRunTaskTriggerError = "task_executor_run_task_trigger_error"
            ["task_executor", "task_func", "task_broker", "e"] => ["result"]
            when "after the task's body raised a plugin error; takes directives as well",
        TaskExecutorAfterExecute = "task_executor_after_execute"
            ["task_executor"] => []
            when "after the body, when there is a result, a plugin's or its own",
        TaskExecutorAfterExecuteResultReplace = "task_executor_after_execute_result_replace"
            ["task_executor", "result"] => ["result"]
            when "right after `task_executor_after_execute`",
        TaskExecutorDecode = "task_executor_decode"
            ["task_executor", "result"] => ["result"]
            when "after the middlewares, last before the result is settled",
        TaskExecutorTaskClose = "task_executor_task_close"
            ["task_executor", "task_func", "task_broker"] => []
            when "at the end of an attempt, however it ended; not of one that is cut off, cancelled from outside or at the drain deadline",
    }
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

pub(crate) const fn same_text(left: &str, right: &str) -> bool {
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

    #[test]
    fn what_may_be_replaced_was_passed() {
        for trigger in Trigger::ALL {
            let passed = |key: &&&str| trigger.kwargs().contains(*key);
            let not_passed: Vec<_> = trigger.returnable_keys().iter().filter(|key| !passed(key)).collect();
            // What only an answer can bring.
            let expected: &[&&str] = match trigger {
                Trigger::QtasksAddTaskBeforeBroker => &[&"extra"],
                Trigger::TaskExecutorRunTaskTriggerError => &[&"result"],
                _ => &[],
            };
            assert_eq!(not_passed, expected, "{trigger}");
        }
        assert_eq!(Trigger::BrokerAddBefore.component(), "Broker");
    }
}
