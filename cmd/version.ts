// The product's version text, worked out when the binary is built: imported as a macro, so that nothing is left of this
// file (and of package.json) in the program that prints it.

import { readFileSync } from "node:fs"

/** The release whose programs this one stands in for. Scripts read the leading `MAJOR.MINOR` of `ctdb version`. */
const stockRelease = "4.17.12"

/**
 * `4.17.12-ctdb-0.1.0`: Samba's own form, release and vendor suffix. The suffix is how an operator tells this program
 * from the stock one.
 */
export function versionText(): string {
  const { version } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as {
    version: string
  }
  return `${stockRelease}-ctdb-${version}`
}
