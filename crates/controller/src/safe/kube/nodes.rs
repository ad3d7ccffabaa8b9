//! What the API server knows of nodes, and the taint that keeps pods off one whose agent is not ready.

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::ResourceExt;
use serde_json::{Value, json};

use super::{call, code};

/// Key of the taint.
pub const TAINT: &str = "testudo.dev/agent-not-ready";

/// What is kept of a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) uid: String,
    /// The kernel's boot ID by the kubelet's word.
    pub(super) boot: String,
    pub(super) tainted: bool,
}

pub(super) fn keep(node: &Node) -> Known {
    let info = node.status.as_ref().and_then(|s| s.node_info.as_ref());
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    Known {
        uid: node.uid().unwrap_or_default(),
        boot: info.map(|info| info.boot_id.clone()).unwrap_or_default(),
        tainted: taints.into_iter().flatten().any(|taint| taint.key == TAINT),
    }
}

/// How often a Node that others change all the time is tried.
const TRIES: usize = 4;

/// Takes the taint off the Node of this UID, whatever its effect, and touches nothing else. `may` is asked
/// right before each write.
pub(super) async fn untaint(
    client: Client,
    name: &str,
    uid: &str,
    may: impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let api: Api<DynamicObject> = Api::all_with(client, &ApiResource::erase::<Node>(&()));
    let mut tries = 1;
    loop {
        match try_to_untaint(&api, name, uid, &may).await {
            Err(error) if code(&error) == 409 && tries < TRIES => tries += 1,
            done => return done,
        }
    }
}

async fn try_to_untaint(
    api: &Api<DynamicObject>,
    name: &str,
    uid: &str,
    may: impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Some(node) = call(api.get_opt(name)).await? else {
        return Ok(());
    };
    let Some(rest) = without_ours(&node).filter(|_| node.uid().as_deref() == Some(uid)) else {
        return Ok(());
    };
    // The list is replaced as a whole, and so only if nobody has changed the Node meanwhile.
    let patch = Patch::Merge(json!({
        "metadata": { "resourceVersion": node.resource_version(), "uid": uid },
        "spec": { "taints": rest },
    }));
    let params = PatchParams {
        field_manager: Some("testudo-controller".to_owned()),
        ..PatchParams::default()
    };
    may()?;
    call(api.patch(name, &params, &patch)).await.map(drop)
}

/// The other taints; `None` where ours is not among them.
fn without_ours(node: &DynamicObject) -> Option<Vec<Value>> {
    let taints = node.data.pointer("/spec/taints")?.as_array()?;
    let others = taints.iter().filter(|taint| taint["key"] != TAINT);
    let others: Vec<Value> = others.cloned().collect();
    (others.len() < taints.len()).then_some(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_go_and_the_others_stay_as_they_are() {
        let node = |taints: Value| {
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1", "uid": "u1" },
                "spec": { "taints": taints }, "status": { "nodeInfo": { "bootID": "b" } },
            })
        };
        let other = json!({ "key": "other", "effect": "NoSchedule", "newer": 1 });
        let ours = json!({ "key": TAINT, "effect": "NoSchedule" });
        let rest = |taints: Value| {
            without_ours(&serde_json::from_value::<DynamicObject>(node(taints)).unwrap())
        };
        let both = json!([ours, other, { "key": TAINT, "effect": "NoExecute" }]);
        assert_eq!(rest(both.clone()), Some(vec![other.clone()]));
        assert_eq!(rest(json!([ours])), Some(Vec::new()));
        assert_eq!(rest(json!([other])), None);
        assert_eq!(rest(Value::Null), None);
        let mut known = node(both);
        known["status"]["nodeInfo"] =
            serde_json::to_value(k8s_openapi::api::core::v1::NodeSystemInfo {
                boot_id: "b".to_owned(),
                ..Default::default()
            })
            .unwrap();
        let known = keep(&serde_json::from_value(known).unwrap());
        assert_eq!((known.uid.as_str(), known.boot.as_str()), ("u1", "b"));
        assert!(known.tainted);
    }
}
