//! An API server that cannot be reached for a while: a forwarder stands before it that can be shut.

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::*;

/// Forwards connections to the API server while it is open.
struct Gate {
    open: watch::Sender<bool>,
    port: u16,
}

impl Gate {
    async fn before(config: &Config) -> Self {
        let host = config.cluster_url.authority().unwrap().to_string();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, state) = watch::channel(true);
        tokio::spawn(async move {
            loop {
                let Ok((mut from, _)) = listener.accept().await else { return };
                let (host, mut state) = (host.clone(), state.clone());
                tokio::spawn(async move {
                    if !*state.borrow() {
                        return;
                    }
                    let Ok(mut to) = TcpStream::connect(&host).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                        _ = state.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { open, port }
    }
}

async fn through_a_gate() -> (Client, Gate) {
    let file = Kubeconfig::read_from(kubeconfig()).unwrap();
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    let gate = Gate::before(&config).await;
    config.cluster_url = format!("https://127.0.0.1:{}", gate.port).parse().unwrap();
    (Client::try_from(config).unwrap(), gate)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server"]
async fn a_short_outage_is_waited_out_and_a_long_one_ends_the_reign() {
    let _one = ONE.lock().await;
    clean("outage").await;
    let (client, gate) = through_a_gate().await;
    let patient = LeaseConfig {
        duration: Duration::from_secs(20),
        deadline: Duration::from_secs(15),
        retry: Duration::from_millis(500),
        ..lease("outage", "o")
    };
    let s = Arc::new(Kubernetes::new(client, patient));
    s.begin().await.unwrap();
    let record = attached(1);
    let mut version = s.put(None, record.clone()).await.unwrap();

    // Whether what is under way as the line breaks was done is found out by itself.
    let busy = tokio::spawn({
        let (s, record) = (s.clone(), record.clone());
        async move {
            for i in 0..200 {
                version = until("the write", || async {
                    match s.put(Some(version), changed(&record, &i.to_string())).await {
                        Ok(v) => Some(v),
                        Err(StoreError::NotNow(_)) => None,
                        Err(e) => panic!("write {i}: {e:?}"),
                    }
                })
                .await;
            }
            version
        }
    });
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        gate.open.send_replace(false);
        tokio::time::sleep(Duration::from_millis(700)).await;
        gate.open.send_replace(true);
    }
    let version = busy.await.unwrap();
    assert_eq!(all(s.as_ref(), 10).await, [(version, changed(&record, "199"))]);

    gate.open.send_replace(false);
    let why = tokio::time::timeout(Duration::from_secs(60), s.deposed()).await.unwrap();
    assert!(why.contains("not renewed in time"), "{why}");
    gate.open.send_replace(true);
    let late = s.put(Some(version), record).await;
    assert!(matches!(late, Err(StoreError::Latched(_))), "nothing is written after the reign: {late:?}");
}
