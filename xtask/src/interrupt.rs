//! Ctrl-C, SIGTERM and a closed terminal set a flag; whoever made something looks at it, stops and cleans up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Result, bail};

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From here on the signals no longer kill us. A second one does, for whoever cannot wait.
pub(crate) fn catch() -> Result<()> {
    let flag = Arc::new(AtomicBool::new(false));
    if FLAG.set(Arc::clone(&flag)).is_err() {
        // Registered before. Twice would take the first signal for a second one.
        return Ok(());
    }
    for signal in [
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ] {
        // Order matters: the first handler must see the flag as the previous signal left it.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(())
}

/// Whether a signal came since [`catch`].
pub(crate) fn seen() -> bool {
    FLAG.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Fails once a signal came.
pub(crate) fn check() -> Result<()> {
    if seen() {
        bail!("interrupted");
    }
    Ok(())
}
