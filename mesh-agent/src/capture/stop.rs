//! The end of an agent that leaves its workloads to the fail policy: nothing new is steered to it, and what was
//! already on its way is still accepted.

use std::time::Duration;

use super::{Capture, listeners, release};

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A peer that never finishes its handshake is not waited for longer.
const DEADLINE: Duration = Duration::from_secs(3);

impl Capture {
    /// Takes the listeners out of the kernel's map, as if the agent were gone: from now on the fail policy decides on
    /// new connections. Returns when nothing is queued on the listeners any more, or after three seconds.
    pub async fn stop_steering(&self) {
        self.table().close();
        let pods = self.enrolled();
        for pod in pods.values() {
            if let Some(inner) = pod.lock().as_ref() {
                for address in &inner.addresses {
                    if let Err(error) = listeners::unregister(&self.shared.maps, *address) {
                        tracing::warn!(workload = %pod.pod.name, %address, %error, "cannot take a listener out of the map");
                    }
                }
            }
        }
        let begun = tokio::time::Instant::now();
        for pod in pods.values() {
            while !release::is_quiet(&self.shared, pod).unwrap_or(true)
                && begun.elapsed() < DEADLINE
            {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }

    /// Closes capture's own descriptors of the listeners; the kernel resets what is still queued when the proxy has
    /// closed its own as well.
    pub fn close_listeners(&self) {
        for pod in self.enrolled().values() {
            if let Some(inner) = pod.lock().as_mut() {
                inner.listeners.clear();
            }
        }
    }
}
