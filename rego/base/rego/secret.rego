# The secret that a request is about.
package bulla.secret

import rego.v1

# What the policy says of its class. A class without an entry leaves this undefined, and everything that needs it.
class := data.classes[input.resource.secret.class]
