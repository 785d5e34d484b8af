//! A connection that is opened when it is needed, and again after it broke.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, ServerErrorKind};
use tokio::sync::Mutex;

use super::script::Script;
use crate::broker::error::{BrokerError, BrokerErrorKind};

/// How long opening may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection that several callers share. Each of them finds out by an error that it broke, and the next one opens it anew.
#[derive(Debug)]
pub(super) struct Link {
    client: Client,
    place: Arc<str>,
    response: Duration,
    open: Mutex<Option<Open>>,
    /// Counts connections, so that an error of an old one does not end a new one.
    number: std::sync::atomic::AtomicU64,
}

#[derive(Clone)]
struct Open {
    connection: MultiplexedConnection,
    number: u64,
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Link {
    /// A link whose answers come within `response`.
    pub(super) fn new(client: Client, place: Arc<str>, response: Duration) -> Self {
        Self { client, place, response, open: Mutex::default(), number: std::sync::atomic::AtomicU64::default() }
    }

    pub(super) fn place(&self) -> &Arc<str> {
        &self.place
    }

    /// A connection of the caller's own.
    pub(super) async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(Some(self.response));
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }

    async fn open(&self) -> Result<Open, RedisError> {
        let mut open = self.open.lock().await;
        if let Some(open) = &*open {
            return Ok(open.clone());
        }
        let connection = self.connect().await?;
        let number = self.number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(open.insert(Open { connection, number }).clone())
    }

    /// Closes the connection where it did not answer, if it is still the one.
    async fn close_if_broken<T>(&self, ran: &Result<T, RedisError>, number: u64) {
        let Err(error) = ran else { return };
        // A server that may not be written to any more may have another in its place, under the same name.
        let moved = matches!(error.code(), Some("READONLY" | "MASTERDOWN" | "LOADING"));
        if !moved && matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) {
            return;
        }
        let mut open = self.open.lock().await;
        if open.as_ref().is_some_and(|open| open.number == number) {
            *open = None;
        }
    }

    /// Runs a command.
    pub(super) async fn run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, BrokerError> {
        self.try_run(command).await.map_err(|error| error_of(&self.place, error))
    }

    async fn try_run<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        let Open { mut connection, number } = self.open().await?;
        let ran = command.query_async(&mut connection).await;
        self.close_if_broken(&ran, number).await;
        ran
    }

    /// Runs several commands, sent together; each stands for itself.
    pub(super) async fn run_all<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, BrokerError> {
        let ran = async {
            let Open { mut connection, number } = self.open().await?;
            let ran = commands.query_async(&mut connection).await;
            self.close_if_broken(&ran, number).await;
            ran
        };
        ran.await.map_err(|error| error_of(&self.place, error))
    }

    /// Runs several commands, sent together, each answered alike.
    pub(super) async fn together<T: FromRedisValue>(
        &self,
        commands: impl IntoIterator<Item = Cmd>,
    ) -> Result<Vec<T>, BrokerError> {
        let mut all = Pipeline::new();
        for command in commands {
            all.add_command(command);
        }
        if all.is_empty() { Ok(Vec::new()) } else { self.run_all(&all).await }
    }

    /// Runs a script, which the server is told when it does not know it.
    pub(super) async fn call<T: FromRedisValue>(&self, script: &Script, call: &Cmd) -> Result<T, BrokerError> {
        let ran = match self.try_run(call).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let told: Result<String, RedisError> = self.try_run(redis::cmd("SCRIPT").arg("LOAD").arg(script.text())).await;
                match told {
                    Ok(_) => self.try_run(call).await,
                    Err(error) => Err(error),
                }
            }
            ran => ran,
        };
        ran.map_err(|error| error_of(&self.place, error))
    }
}

/// What an error of the client means.
pub(super) fn error_of(place: &Arc<str>, error: RedisError) -> BrokerError {
    let kind = match (error.kind(), error.code()) {
        (ErrorKind::AuthenticationFailed, _) | (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM")) => BrokerErrorKind::Forbidden,
        (_, Some("READONLY")) => BrokerErrorKind::ReadOnly,
        (_, Some("OOM" | "MISCONF")) => BrokerErrorKind::Full,
        (ErrorKind::Io, _) | (_, Some("LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN")) => BrokerErrorKind::Unreachable,
        _ => BrokerErrorKind::Other,
    };
    BrokerError::with_source(place, kind, Told(error.to_string()))
}

/// What the client says of an error. Its own error has a cause that says the same once more.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Told(String);
