//! The scripts: each is one step of the queue, whole or not at all.
//!
//! They reach for keys that they make up from what they read, so they need one server, or a primary with its replicas; a Redis Cluster
//! would refuse them, as QTasks' own keys do not stay on one node either.

use std::sync::LazyLock;

use redis::{Cmd, ToRedisArgs};

/// A script, and the name by which the server knows it.
pub(super) struct Script {
    text: String,
    hash: String,
}

impl Script {
    fn new(text: &str) -> Self {
        let text = format!("{}\n{text}", include_str!("scripts/names.lua"));
        let hash = redis::Script::new(&text).get_hash().to_owned();
        Self { text, hash }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// A call in this project, to which arguments are added.
    pub(super) fn call(&self, project: impl ToRedisArgs) -> Cmd {
        let mut call = redis::cmd("EVALSHA");
        call.arg(&self.hash).arg(1).arg(project);
        call
    }
}

macro_rules! scripts {
    ($($name:ident $file:literal)*) => {
        $(pub(super) static $name: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!(concat!("scripts/", $file))));)*
    };
}

scripts! {
    ADD "add.lua"
    TAKE "take.lua"
    FINISH "finish.lua"
    NOTE_MISSING "note_missing.lua"
    DROP_MISSING "drop_missing.lua"
    BEGIN "begin.lua"
    GIVE_BACK "give_back.lua"
    TAKE_OVER "take_over.lua"
    ADOPT "adopt.lua"
    DETACH "detach.lua"
    CANCEL "cancel.lua"
    REQUEUE "requeue.lua"
    UPDATE "update.lua"
    PRUNE "prune.lua"
    REMOVE_ENDED "remove_ended.lua"
}
