//! Scripts that look at containers and releases.

use super::{
    super::*,
    sandbox::{Sandbox, Shell},
};
use crate::deploy::{
    health::{CONTAINER_FORMAT, Look},
    stack::PROJECT,
};

#[test]
fn containers_lists_those_of_the_project_alone() {
    for shell in Shell::ALL {
        let sandbox = Sandbox::new(shell);
        sandbox.container("a", PROJECT, "node", "");
        sandbox.container("b", "other", "web", "");
        let text = sandbox.run(CONTAINERS, &[PROJECT, CONTAINER_FORMAT]).success();
        let look = Look::parse(&text);
        assert!(look.runs("node") && look.containers.len() == 1 && look.now_seconds > 0, "{text}");
    }
}
