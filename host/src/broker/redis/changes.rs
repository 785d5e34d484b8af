//! Who waits for a task's end is told over a channel of the server.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::Client;
use tokio::sync::{Notify, OnceCell, oneshot};
use tokio::task::JoinSet;

use super::keys::Keys;

/// Python workers tell nobody: their results are looked for this often.
const LOOK: Duration = Duration::from_millis(250);

/// Listens from the first time that somebody waits.
#[derive(Debug)]
pub(super) struct Changes {
    changed: Arc<Notify>,
    /// Ends with this.
    listening: OnceCell<JoinSet<()>>,
}

impl Changes {
    pub(super) fn new() -> Self {
        Self { changed: Arc::default(), listening: OnceCell::new() }
    }

    /// Waits until something may have changed. The first wait is short: what changed before it listened, it cannot know.
    pub(super) async fn wait(&self, client: &Client, keys: &Arc<Keys>, at_most: Duration) {
        let changed = self.changed.notified();
        if !self.listening.initialized() {
            let listen = || async {
                let (ready, is_ready) = oneshot::channel();
                let mut listening = JoinSet::new();
                listening.spawn(listen(client.clone(), Arc::clone(keys), Arc::clone(&self.changed), ready));
                // Ready or not, whoever waits looks again in a while.
                let _ = tokio::time::timeout(LOOK, is_ready).await;
                listening
            };
            self.listening.get_or_init(listen).await;
            return;
        }
        // Elapsed or changed, the caller looks again.
        let _ = tokio::time::timeout(at_most.min(LOOK), changed).await;
    }
}

async fn listen(client: Client, keys: Arc<Keys>, changed: Arc<Notify>, ready: oneshot::Sender<()>) {
    let mut ready = Some(ready);
    loop {
        if let Ok(mut subscribed) = client.get_async_pubsub().await
            && subscribed.subscribe(&keys.changed).await.is_ok()
        {
            if let Some(ready) = ready.take() {
                // Nobody waits any more, which is as good.
                let _ = ready.send(());
            }
            changed.notify_waiters();
            let mut messages = subscribed.into_on_message();
            while messages.next().await.is_some() {
                changed.notify_waiters();
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}
