//! What the API server lets through as a pool, and that the controller understands all of it.

use api::StoragePool;
use controller::pools::{Found, in_cluster};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    api::{ApiResource, DynamicObject, PostParams},
    core::Status,
};
use serde_json::Value;

use super::*;

const CRD: &str = "storagepools.weir.storage";

struct Pools(Api<DynamicObject>);

impl Pools {
    fn of(client: &Client) -> Self {
        Self(Api::all_with(client.clone(), &ApiResource::erase::<StoragePool>(&())))
    }

    async fn make(&self, name: &str, spec: Value) -> Result<DynamicObject, Box<Status>> {
        let object = json!({
            "apiVersion": "weir.storage/v1alpha1", "kind": "StoragePool", "metadata": { "name": name }, "spec": spec,
        });
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        said(self.0.create(&PostParams::default(), &object).await)
    }

    async fn set_extent(&self, name: &str, extent: Value) -> Result<DynamicObject, Box<Status>> {
        let patch = json!({ "spec": { "extentSize": extent } });
        said(self.0.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await)
    }

    async fn remove(&self, name: &str) {
        self.0.delete(name, &DeleteParams::default()).await.unwrap();
    }
}

/// What the schema says.
fn said(answer: kube::Result<DynamicObject>) -> Result<DynamicObject, Box<Status>> {
    answer.map_err(|e| match e {
        kube::Error::Api(s) if s.code == 422 => s,
        e => panic!("{e}"),
    })
}

fn devices(selector: Value) -> Value {
    json!({ "devices": [selector] })
}

fn extent(size: Value) -> Value {
    json!({ "devices": [{ "paths": ["/dev/none*"] }], "extentSize": size })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server"]
async fn the_schema_lets_through_what_the_controller_understands_and_no_more() {
    let _one = ONE.lock().await;
    let client = patient().await;
    let pools = Pools::of(&client);
    until("the kind is served", || async { pools.0.list(&ListParams::default()).await.ok() }).await;
    let reserve = |q: Value| {
        let mut spec = extent(json!("16Mi"));
        spec["reserve"] = q;
        spec
    };
    let good = [
        extent(json!("4Mi")),
        extent(json!("4096Ki")),
        extent(json!("1024Mi")),
        extent(json!("1Gi")),
        extent(json!("16777216")),
        extent(json!(16_777_216)),
        extent(Value::Null),
        devices(json!({ "minSize": "1Gi" })),
        devices(json!({ "minSize": 1 })),
        devices(json!({ "minSize": "0", "paths": ["/dev/x"] })),
        reserve(json!("9999Pi")),
        reserve(json!("9999999999999999999")),
        reserve(json!(0)),
        reserve(Value::Null),
    ];
    for spec in &good {
        pools.make("schema", spec.clone()).await.unwrap_or_else(|e| panic!("{spec}: {e:?}"));
        let found = in_cluster(&client, &Found::default()).await.unwrap();
        assert!(found.pools.iter().any(|p| p.name.as_str() == "schema"), "{spec}: {:?}", found.left_out);
        pools.remove("schema").await;
    }
    let bad = [
        (extent(json!("3Mi")), "power of two"),
        (extent(json!("2Mi")), "power of two"),
        (extent(json!("2Gi")), "power of two"),
        (extent(json!(5_000_000)), "power of two"),
        (extent(json!("9999Pi")), "power of two"),
        (extent(json!("99999999999999999999")), "extentSize"),
        (extent(json!("16777216000m")), "extentSize"),
        (extent(json!("")), "extentSize"),
        (devices(json!({ "minSize": "0" })), "every blank device"),
        (devices(json!({ "minSize": 0 })), "every blank device"),
        (devices(json!({ "minSize": "0Ki" })), "every blank device"),
        (devices(json!({ "minSize": Value::Null })), "every blank device"),
        (reserve(json!("99999Pi")), "reserve"),
        (reserve(json!("99999999999999999999")), "reserve"),
    ];
    for (spec, why) in bad {
        let e = pools.make("schema", spec.clone()).await.expect_err(&spec.to_string());
        assert!(e.message.contains(why), "{spec}: {}", e.message);
    }

    pools.make("schema", extent(json!("16Mi"))).await.unwrap();
    for same in [json!(16_777_216), json!("16384Ki"), json!("16Mi"), Value::Null] {
        pools.set_extent("schema", same.clone()).await.unwrap_or_else(|e| panic!("{same}: {e:?}"));
    }
    for other in [json!("32Mi"), json!(4_194_304)] {
        let e = pools.set_extent("schema", other).await.unwrap_err();
        assert!(e.message.contains("never changes"), "{}", e.message);
    }
    pools.remove("schema").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server"]
async fn what_an_older_schema_let_through_can_be_corrected() {
    let _one = ONE.lock().await;
    let client = patient().await;
    let pools = Pools::of(&client);
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let strict = crds.get(CRD).await.unwrap();
    let mut loose = serde_json::to_value(&strict).unwrap();
    let extents = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/extentSize";
    *loose.pointer_mut(extents).unwrap() = json!({ "x-kubernetes-int-or-string": true, "nullable": true });
    let loose: CustomResourceDefinition = serde_json::from_value(loose).unwrap();
    crds.replace(CRD, &PostParams::default(), &loose).await.unwrap();
    let older = [("older-odd", json!("3Mi")), ("older-long", json!("99999999999999999999"))];
    for (name, size) in &older {
        until("the older schema", || async { pools.make(name, extent(size.clone())).await.ok() }).await;
    }
    let mut back = crds.get(CRD).await.unwrap();
    back.spec = strict.spec;
    crds.replace(CRD, &PostParams::default(), &back).await.unwrap();
    until("the schema", || async {
        let made = pools.make("older-new", extent(json!("3Mi"))).await;
        if made.is_ok() {
            pools.remove("older-new").await;
        }
        made.err()
    })
    .await;

    let found = until("the storage", || async { in_cluster(&client, &Found::default()).await.ok() }).await;
    for (name, _) in &older {
        assert!(found.left_out.contains_key(*name), "{found:?}");
        // It is told why.
        let status = json!({ "status": { "disks": 1 } });
        pools.0.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
        assert!(pools.set_extent(name, json!("5Mi")).await.is_err());
        pools.set_extent(name, json!("8Mi")).await.unwrap();
        assert!(pools.set_extent(name, json!("16Mi")).await.is_err());
    }
    let found = in_cluster(&client, &Found::default()).await.unwrap();
    for (name, _) in &older {
        assert!(found.pools.iter().any(|p| p.name.as_str() == *name), "{found:?}");
        pools.remove(name).await;
    }
}
