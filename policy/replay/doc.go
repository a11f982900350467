// Package replay judges recorded decisions again: by the revision that decided, which has to give the recorded bytes
// (Run), and by a candidate, which shows what it would have done (WhatIf). A sweep over what the data of two revisions
// name shows what no recording does, and Access asks who could read a secret.
//
// It works on a sequence of recorded decisions and on archives of revisions, and knows no ledger, no broker and no
// network: whoever has a verified export can run it on a machine of its own. Nothing here decides anything, and no
// answer of it may release anything.
//
// What it says about what could be is said under the best circumstances that it can think of (see Contexts), and is as
// good as these are.
package replay
