//! The host's side of a plugin that lives in a process of its own: a call that misses its deadline costs the process its life; a process
//! that ends is started again. [`Lives`] are all of them, [`Connection`] is one.

use std::sync::Arc;
use std::time::Duration;

use qtasks_plugin_api::ErrorBody;
use qtasks_plugin_api::manifest::Mode;

use super::connection::{Connection, GRACE, STOP};
use super::frame::{self, Kind};
use super::recipe::Recipe;
use super::restart::Lives;
use super::sandbox::SandboxLevel;
use super::spawn::GuestError;
use crate::plugin::outcome::{CRASH_ERROR, DEADLINE_ERROR, Outcome, failed};

/// A plugin in a process of its own.
#[derive(Debug)]
pub(crate) struct Isolated(Arc<Lives>);

impl Isolated {
    /// Starts the process and waits until the plugin runs in it. Needs a tokio runtime around it, and blocks.
    ///
    /// # Errors
    ///
    /// [`GuestError`].
    pub(crate) fn start(recipe: Recipe) -> Result<Self, GuestError> {
        let (guest, sandbox) = recipe.start(|_| ())?;
        if sandbox != SandboxLevel::Full {
            tracing::warn!(plugin = %recipe.plugin(), ?sandbox, "this kernel does not enforce the whole sandbox");
        }
        let connection = Connection::new(guest, recipe.plugin())?;
        Ok(Self(Arc::new(Lives::new(recipe, connection))))
    }

    /// Runs an entry in the process. Dropping the future tells the plugin that nobody waits.
    pub(crate) async fn call(
        &self,
        id: u64,
        entry: u32,
        mode: Mode,
        name: &str,
        input: &str,
        deadline: Option<Duration>,
    ) -> Outcome {
        // A deadline beyond what a clock can say is none.
        let until = deadline.and_then(|deadline| tokio::time::Instant::now().checked_add(deadline));
        let connection = match self.connection(until).await {
            Ok(connection) => connection,
            Err(error) => return Outcome::Failed(error),
        };
        let call = connection.call(id, frame::encode_call(id, entry, mode, name, input));
        let Some(until) = until else { return call.await };
        tokio::pin!(call);
        match tokio::time::timeout_at(until, &mut call).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let cancel = frame::encode(Kind::Cancel, id, &[]);
                // Together: the call may still be writing its own frame, and hold what the other has to wait for.
                let told = async { tokio::join!(connection.send(cancel), &mut call) };
                if tokio::time::timeout(GRACE, told).await.is_err() {
                    connection.end(format!("was killed: a call of {name} missed its deadline and did not end when told")).await;
                }
                let seconds = deadline.unwrap_or_default().as_secs_f64();
                failed(DEADLINE_ERROR, format!("did not end within {seconds} s"))
            }
        }
    }

    /// A living process, unless that takes until then.
    async fn connection(&self, until: Option<tokio::time::Instant>) -> Result<Arc<Connection>, Box<ErrorBody>> {
        let living = self.0.living();
        let Some(until) = until else { return living.await };
        tokio::time::timeout_at(until, living).await.unwrap_or_else(|_| {
            Err(Box::new(ErrorBody::new(CRASH_ERROR, "the plugin's process is being started again".to_owned())))
        })
    }

    /// Why it is no longer called, if so.
    pub(crate) fn tripped(&self) -> Option<String> {
        self.0.tripped()
    }

    /// Tells the plugin to stop, and ends the process at `deadline` at the latest; one that is coming up, at once.
    pub(crate) async fn stop(&self, deadline: Duration) -> Result<(), String> {
        let connection = self.0.close();
        if connection.ended().is_some() {
            return Ok(());
        }
        let stopped = connection.call(STOP, frame::encode(Kind::Stop, STOP, &[]));
        let outcome = tokio::time::timeout(deadline, stopped).await;
        connection.end("was stopped".to_owned()).await;
        match outcome {
            Ok(Outcome::Failed(error)) => Err(error.to_string()),
            Ok(_) => Ok(()),
            Err(_) => Err(format!("did not stop within {} s; its process was killed", deadline.as_secs_f64())),
        }
    }
}

impl Drop for Isolated {
    fn drop(&mut self) {
        self.0.close().kill();
    }
}
