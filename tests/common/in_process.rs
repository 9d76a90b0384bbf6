//! A hop in the test's own runtime: on a paused clock its timeouts take no time, and every limit can be set.

use std::net::SocketAddr;

use httpserver::hop::app::{App, Ended, Output};
use httpserver::hop::config::HopConfig;
use httpserver::server::shutdown::Stop;
use httpserver::values::Listen;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// One hop on a free loopback port, serving. It ends with the test's runtime.
#[derive(Debug)]
pub struct InProcess {
    pub addr: SocketAddr,
    stop: oneshot::Sender<Stop>,
    task: JoinHandle<Ended>,
}

impl InProcess {
    /// A hop with every default, but for what `change` sets.
    pub async fn start(change: impl FnOnce(&mut HopConfig)) -> Self {
        let mut config = HopConfig::new("hop", Listen { host: Some([127, 0, 0, 1].into()), port: 0 });
        change(&mut config);
        let app = App::bind(config, &Output::new()).await.expect("a free port");
        let addr = app.addr();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(app.run(async { stopped.await.unwrap_or(Stop::Now) }));
        Self { addr, stop, task }
    }

    pub async fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).await.expect("the hop listens");
        // The kernel's clock is not paused: what Nagle's algorithm delays would arrive hours late.
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Stops the hop and returns how that went.
    pub async fn stopped(self, stop: Stop) -> Ended {
        let _ = self.stop.send(stop);
        self.task.await.expect("the hop ends in good order")
    }
}
