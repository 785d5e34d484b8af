//! The small async runtime of a plugin that has async handlers or tasks.
//!
//! tokio's context is a thread-local of each library, so the host's runtime does not reach into a plugin: the plugin brings its
//! own, one thread, started when it is created. The host awaits a completion and never polls a plugin's future.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::abi::AbiOutcome;
use crate::answer::Answer;
use crate::error::{Error, ErrorBody};
use crate::event::Call;
use crate::guard::guard;
use crate::host::{CancelFlag, Host};

/// A future that may be sent to the runtime's thread.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Stops a running future at its next await.
pub(crate) type TaskHandle = tokio::task::AbortHandle;

/// A call that outlives the host's buffers.
#[derive(Debug)]
pub struct OwnedCall {
    pub(crate) name: String,
    pub(crate) input: String,
    pub(crate) cancel: CancelFlag,
    pub(crate) host: Host,
}

impl OwnedCall {
    /// The call as a handler takes it.
    #[must_use]
    pub fn as_call(&self) -> Call<'_> {
        Call { name: &self.name, input: &self.input, cancel: &self.cancel, host: &self.host }
    }
}

/// One thread that runs a plugin's futures.
pub(crate) struct Runtime(Option<tokio::runtime::Runtime>);

impl Runtime {
    pub(crate) fn new(plugin: &str) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name(plugin).enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    /// Runs `future`; in the end `forget` is called, and then `completion` told. Aborted or not, panic or not.
    pub(crate) fn spawn(
        &self,
        future: BoxFuture<'static, Answer>,
        forget: impl FnOnce() + Send + 'static,
        completion: Completion,
    ) -> TaskHandle {
        let mut ended = Ended { forget: Some(forget), completion: Some(completion) };
        let body = async move {
            let outcome = Guarded(Some(future)).await;
            ended.tell(outcome);
        };
        match &self.0 {
            Some(runtime) => runtime.spawn(body).abort_handle(),
            // Only `drop` takes the runtime out.
            None => unreachable!("the runtime lives as long as the instance"),
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting here could hang the host on a future that never yields.
            runtime.shutdown_background();
        }
    }
}

/// Polls a future behind the panic guard, and drops it behind the guard too.
struct Guarded(Option<BoxFuture<'static, Answer>>);

impl Future for Guarded {
    type Output = AbiOutcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<AbiOutcome> {
        let Some(future) = &mut self.0 else {
            return Poll::Ready(AbiOutcome::failed(&ErrorBody::new("Error", "polled again after its end")));
        };
        match guard(|| future.as_mut().poll(context)) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(answer)) => Poll::Ready(answer.into()),
            Err(panic) => Poll::Ready(AbiOutcome::failed(&panic)),
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let future = self.0.take();
        // The outcome is already told, or the call was cancelled: a panic in the future's Drop has nobody to go to.
        drop(guard(|| drop(future)));
    }
}

struct Ended<F: FnOnce()> {
    forget: Option<F>,
    completion: Option<Completion>,
}

impl<F: FnOnce()> Ended<F> {
    fn tell(&mut self, outcome: AbiOutcome) {
        if let Some(forget) = self.forget.take() {
            forget();
        }
        if let Some(completion) = self.completion.take() {
            completion.finish(outcome);
        }
    }
}

impl<F: FnOnce()> Drop for Ended<F> {
    fn drop(&mut self) {
        self.tell(AbiOutcome::failed(&cancelled()));
    }
}

fn cancelled() -> ErrorBody {
    ErrorBody::new("Cancelled", "the call was cancelled before it ended")
}

/// Tells the host what a call came to, exactly once: a completion that is lost tells that the call was cancelled.
pub(crate) struct Completion(Option<Box<dyn FnOnce(AbiOutcome) + Send>>);

impl Completion {
    pub(crate) fn new(tell: impl FnOnce(AbiOutcome) + Send + 'static) -> Self {
        Self(Some(Box::new(tell)))
    }

    pub(crate) fn finish(mut self, outcome: AbiOutcome) {
        if let Some(tell) = self.0.take() {
            tell(outcome);
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            tell(AbiOutcome::failed(&cancelled()));
        }
    }
}
