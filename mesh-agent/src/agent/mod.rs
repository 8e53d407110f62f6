//! The composition root: builds the parts, owns start order, drain and shutdown.

mod endpoints;
mod explain;
mod identity;
mod joined;
mod options;
mod routes;
mod unmeshed;
mod upkeep;
mod view;
mod wanted;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use mesh_common::{Event, EventKind};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::{JoinHandle, JoinSet},
};

pub use self::options::{AgentOptions, CaChoice, IdentityOptions};
use self::{
    joined::{Gauges, Names, Records},
    unmeshed::Unmeshed,
    view::View,
};
use crate::{
    admin::{self, AdminError, AdminState, LocalSocket},
    api::Environment,
    capture::{Capture, CaptureOptions, PodEvent, PodState, PodStatus},
    catalog::{Catalog, CatalogOptions},
    discovery::file::{FileOptions, FileSource},
    health,
    identity::Identities,
    proxy::{self, EVENT_INTERVAL, Proxy, ProxyOptions},
    telemetry::{Telemetry, TelemetryOptions, TracingOptions, logging},
};

/// After a drain, resets are given this long to leave before the process goes.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How long an agent of the same name may take to be gone.
const DYING: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Runs the agent until a signal or `mesh-agent release` ends it.
///
/// # Errors
/// Whatever keeps it from starting. Once it runs it does not give up by itself.
pub fn run(options: AgentOptions) -> anyhow::Result<()> {
    let telemetry = Telemetry::new(TelemetryOptions {
        node: options.node.clone(),
        closed_max: options.closed_max,
        closed_age: options.closed_age,
        flows_max: options.flows_max,
        requests_max: options.requests_max,
        log_query: options.log_query,
        ..TelemetryOptions::default()
    });
    let (log, _flush) = logging::init(options.log_format, &options.log_filter, &telemetry)?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .thread_name("mesh-worker");
    if let Some(workers) = options.workers {
        builder.worker_threads(workers);
    }
    let runtime = builder.build().context("cannot start the runtime")?;
    let result = runtime.block_on(serve(options, telemetry, log));
    // Threads that read the kernel are not waited for.
    runtime.shutdown_timeout(LAST_WORDS);
    result
}

async fn serve(
    options: AgentOptions,
    telemetry: Telemetry,
    log: logging::LogControl,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut ends = Ends::new()?;
    let nofile = proxy::raise_nofile().context("cannot raise the limit of open files")?;

    // What others may hold is asked for first: a second agent of this name must fail before it touches anything.
    let socket = admin_socket(&options).await?;
    let public = TcpListener::bind(options.metrics_addr)
        .await
        .with_context(|| {
            format!(
                "cannot serve metrics on {}; choose another --metrics-addr",
                options.metrics_addr
            )
        })?;

    let catalog = Catalog::with_options(CatalogOptions {
        root_namespace: options.root_namespace.clone(),
        ..CatalogOptions::new(options.node.as_str())
    });
    let source = first_configuration(&options, &catalog).await?;
    let identities = identity::build(&options)?;

    let (capture, streams) = Capture::start(CaptureOptions {
        node: options.node.clone(),
        bpffs: options.bpffs.clone(),
        cgroup2: options.cgroup2.clone(),
        ..CaptureOptions::new(options.node.as_str())
    })
    .await?;
    tracing::info!(
        node = options.node,
        adopted = capture.adopted(),
        "kernel programs attached"
    );

    catalog.set_adopting(capture.adopted());
    let spans = options
        .tracing
        .as_ref()
        .map(|o| Spans::start(&telemetry, o))
        .transpose()?;

    let mut proxy_options = ProxyOptions::for_nofile(nofile);
    if let Some(most) = options.max_connections {
        proxy_options.capacity.connections = usize::try_from(most).unwrap_or(usize::MAX);
    }
    let proxy = Proxy::with_credentials(
        catalog.clone(),
        Arc::new(telemetry.clone()),
        identities.clone(),
        proxy_options,
    )
    .context("cannot start the proxy")?;
    let unmeshed = Arc::new(Unmeshed::default());
    let checks = health::Board::new();

    telemetry.set_directory(Arc::new(Names(catalog.clone())));
    telemetry.set_store(Arc::new(Records(capture.clone())));
    let sources = vec![source.state()];
    telemetry.set_agent_source(Arc::new(Gauges {
        catalog: catalog.clone(),
        capture: capture.clone(),
        sources: sources.clone(),
        identities: identities.clone(),
        proxy: proxy.clone(),
        health: checks.clone(),
    }));

    let (release, mut released) = mpsc::channel(1);
    let (applied, applied_rx) = watch::channel(0);
    let view = View::new(
        &options,
        nofile,
        started,
        catalog.clone(),
        capture.clone(),
        proxy.clone(),
        sources.clone(),
        applied_rx,
        release,
        identities.clone(),
        unmeshed.clone(),
        checks.clone(),
    );
    let state = AdminState {
        node: options.node.clone(),
        telemetry: telemetry.clone(),
        log,
        agent: Arc::new(view),
    };

    let mut tasks = JoinSet::new();
    tasks.spawn(follow_pods(streams.pods, catalog.clone(), proxy.clone()));
    tasks.spawn(follow_closed(streams.closed, telemetry.clone()));
    tasks.spawn(identities.clone().run());
    tasks.spawn(unmeshed::run(
        unmeshed,
        catalog.clone(),
        capture.clone(),
        applied.subscribe(),
    ));
    tasks.spawn(follow_catalog(
        catalog.clone(),
        capture.clone(),
        identities,
        proxy.clone(),
        applied,
    ));
    tasks.spawn(follow_health(
        catalog.clone(),
        proxy.clone(),
        telemetry.clone(),
        checks,
    ));
    tasks.spawn(telemetry.clone().run());
    tasks.spawn(upkeep::run(telemetry.clone(), capture.clone(), sources));
    tasks.spawn(admin::serve_public(public, state.clone()));
    tasks.spawn(admin::serve_local(socket, state));

    tokio::select! {
        name = ends.next() => {
            tracing::info!("{name}: draining; the fail policy decides on new connections from now on");
            tokio::select! {
                () = drain(&capture, &proxy) => {}
                name = ends.next() => tracing::warn!("{name} again: connections that are left are reset now"),
            }
        }
        Some(()) = released.recv() => {
            // Answered through the admin socket; everything of the kernel's is gone.
            tracing::info!("released everything");
            proxy.drain().await;
        }
    }
    // Final records that are on their way still go to the access log.
    tokio::time::sleep(LAST_WORDS).await;
    if let Some(spans) = spans {
        spans.flush().await;
    }
    drop(source);
    tasks.shutdown().await;
    Ok(())
}

/// The task that sends spans to the collector.
struct Spans {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Spans {
    fn start(telemetry: &Telemetry, options: &TracingOptions) -> anyhow::Result<Self> {
        let exporter = telemetry.start_tracing(options)?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(exporter.run(async {
            // The sender is kept until it is used.
            let _ = stopped.await;
        }));
        Ok(Self { stop, task })
    }

    /// Sends what is queued; the exporter gives up by itself.
    async fn flush(self) {
        let _ = self.stop.send(());
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the export of spans failed");
        }
    }
}

/// Binds the admin socket. One that was killed a moment ago still holds its own until the kernel has taken it apart.
async fn admin_socket(options: &AgentOptions) -> Result<LocalSocket, AdminError> {
    let begun = Instant::now();
    loop {
        match LocalSocket::bind(&options.socket) {
            Err(AdminError::AlreadyRunning { .. }) if begun.elapsed() < DYING => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            result => return result,
        }
    }
}

/// Loads the directory. A first configuration that is wrong keeps the agent from starting: nothing good is in effect
/// that could stay.
async fn first_configuration(
    options: &AgentOptions,
    catalog: &Arc<Catalog>,
) -> anyhow::Result<FileSource> {
    let files = FileOptions::new(options.config.clone(), &options.node);
    let catalog = catalog.clone();
    let source = tokio::task::spawn_blocking(move || FileSource::spawn(files, catalog))
        .await
        .map_err(io::Error::other)
        .and_then(std::convert::identity)
        .context("cannot follow the configuration directory")?;
    if let Some(errors) = &source.status().error {
        anyhow::bail!("the configuration is refused:\n  {}", errors.join("\n  "));
    }
    Ok(source)
}

/// Ends without losing a connection: nothing new comes, what was queued is accepted, what lives may finish.
async fn drain(capture: &Capture, proxy: &Proxy) {
    capture.stop_steering().await;
    capture.close_listeners();
    proxy.drain().await;
}

/// The signals that end the agent.
struct Ends {
    term: Signal,
    int: Signal,
}

impl Ends {
    fn new() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// Serves pods that are enrolled, stops with those that are released.
async fn follow_pods(mut pods: mpsc::Receiver<PodEvent>, catalog: Arc<Catalog>, proxy: Arc<Proxy>) {
    let mut stopping = JoinSet::new();
    while let Some(event) = pods.recv().await {
        match event {
            PodEvent::Enrolled(pod) => {
                catalog.bind_netns(pod.cookie, pod.name.clone());
                let listeners = pod.take_listeners();
                if let Err(error) = proxy.serve_pod(pod.clone(), listeners) {
                    tracing::error!(workload = %pod.name, %error, "cannot accept its connections");
                }
            }
            PodEvent::Released { cookie, gone } => {
                catalog.unbind_netns(cookie);
                // Connections of a pod that is only released end in their own time.
                let grace = if gone { Duration::ZERO } else { Duration::MAX };
                let proxy = proxy.clone();
                stopping.spawn(async move { proxy.stop_pod(cookie, grace).await });
            }
        }
        while stopping.try_join_next().is_some() {}
    }
}

async fn follow_closed(
    mut closed: mpsc::Receiver<(u64, mesh_common::ConnRecord)>,
    telemetry: Telemetry,
) {
    while let Some((cookie, record)) = closed.recv().await {
        telemetry.on_event(&Event {
            kind: EventKind::Closed as u32,
            pad: 0,
            cookie,
            record,
        });
    }
}

/// Checks endpoints whose policies ask for it. It ends with the agent.
async fn follow_health(
    catalog: Arc<Catalog>,
    proxy: Arc<Proxy>,
    telemetry: Telemetry,
    board: Arc<health::Board>,
) {
    match health::run(catalog, proxy, Arc::new(telemetry), board).await {}
}

/// Makes capture follow the catalog.
async fn follow_catalog(
    catalog: Arc<Catalog>,
    capture: Arc<Capture>,
    identities: Arc<Identities>,
    proxy: Arc<Proxy>,
    applied: watch::Sender<u64>,
) {
    let mut versions = catalog.subscribe();
    let mut adopting = capture.adopted();
    loop {
        versions.borrow_and_update();
        let snapshot = catalog.snapshot();
        identity::follow(&identities, &snapshot);
        // What is forbidden from now on ends before new pods come.
        proxy.decide_anew();
        // Before pods are captured: an address of the mesh must not leak past a dead agent.
        capture.set_mesh_addrs(wanted::mesh_addresses(&snapshot));
        capture.apply(wanted::pods(&snapshot)).await;
        if adopting {
            served(&capture, &catalog).await;
            catalog.set_adopting(false);
            adopting = false;
        }
        applied.send_replace(snapshot.version);
        if versions.changed().await.is_err() {
            return;
        }
    }
}

/// Waits until every workload that is captured is served too.
async fn served(capture: &Capture, catalog: &Catalog) {
    let deadline = Instant::now() + DYING;
    let waits = |pod: &PodStatus| {
        pod.state == PodState::Enrolled
            && pod
                .cookie
                .is_none_or(|cookie| catalog.workload_by_netns(cookie).is_none())
    };
    while capture.pods().iter().any(waits) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What configuration is checked against on this machine; also `mesh-agent config validate`.
pub fn environment(node: Option<&str>) -> Environment {
    Environment::of_this_machine(node)
}
