//! Asking a worker to stop.

use std::sync::Arc;

use tokio::sync::watch;

/// Asks a worker to stop; clones ask the same worker.
#[derive(Debug, Clone)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Stop {
    /// Nothing more is taken from now on; what runs may end.
    pub fn now(&self) {
        self.0.send_replace(true);
    }

    /// Whether it was asked.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is asked.
    pub async fn wait(&self) {
        // The sender is in `self`, so the channel cannot close.
        let _ = self.0.subscribe().wait_for(|asked| *asked).await;
    }
}
