//! Who the API server takes us for.

use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use serde_json::json;
use testudo_model::node::NodeEncryptionKind;
use testudo_store::StoreError;

use crate::store::KubeStore;
use crate::verdict;

impl KubeStore {
    /// The user that the API server takes us for (SelfSubjectReview): the least that it can be asked.
    pub async fn whoami(&self) -> Result<String, StoreError> {
        let link = self.link().await?;
        let resource = ApiResource {
            group: "authentication.k8s.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "authentication.k8s.io/v1".to_owned(),
            kind: "SelfSubjectReview".to_owned(),
            plural: "selfsubjectreviews".to_owned(),
        };
        let api: Api<DynamicObject> = Api::all_with(link.client.clone(), &resource);
        let asked = DynamicObject {
            types: Some(kube::core::TypeMeta {
                api_version: resource.api_version.clone(),
                kind: resource.kind.clone(),
            }),
            metadata: Default::default(),
            data: json!({}),
        };
        let told = link.call(api.create(&PostParams::default(), &asked)).await;
        let told =
            told.map_err(|error| verdict::refused::<NodeEncryptionKind>(&link.server, "", error))?;
        let user = told.data.pointer("/status/userInfo/username");
        Ok(user
            .and_then(|user| user.as_str())
            .unwrap_or_default()
            .to_owned())
    }
}
