package ocsf

import "github.com/bulla-project/bulla/ledger/event"

// The numbers of OCSF that are used.
const (
	activityOther = 99

	informational = 1
	low           = 2
	medium        = 3
	high          = 4

	statusSuccess = 1
	statusFailure = 2
	statusOther   = 99

	typeUser   = 1 // of a user
	typeSystem = 3
	typeDevice = 1 // of a managed entity
	typePolicy = 5
	typeOther  = 99
)

var (
	severities = map[int]string{informational: "Informational", low: "Low", medium: "Medium", high: "High"}
	statuses   = map[int]string{statusSuccess: "Success", statusFailure: "Failure", statusOther: "Other"}

	typeDatabase = 1 // of a datastore
)

// classID names one of the three classes.
type classID int

const (
	apiActivity classID = iota
	datastoreActivity
	entityManagement
)

type class struct {
	uid, category      int
	name, categoryName string
	activities         map[int]string
}

// The activities that are used, by the numbers of each class.
const (
	apiCreate, apiRead, apiUpdate, apiDelete = 1, 2, 3, 4
	dataRead, dataEncrypt, dataDecrypt       = 1, 9, 10

	entityCreate, entityUpdate, entityDelete    = 1, 3, 4
	entityEnroll, entityUnenroll, entityDisable = 6, 7, 9
	entityActivate                              = 10
)

var classes = map[classID]class{
	apiActivity: {6003, 6, "API Activity", "Application Activity", map[int]string{
		apiCreate: "Create", apiRead: "Read", apiUpdate: "Update", apiDelete: "Delete",
	}},
	datastoreActivity: {6005, 6, "Datastore Activity", "Application Activity", map[int]string{
		dataRead: "Read", dataEncrypt: "Encrypt", dataDecrypt: "Decrypt",
	}},
	entityManagement: {3004, 3, "Entity Management", "Identity & Access Management", map[int]string{
		entityCreate: "Create", entityUpdate: "Update", entityDelete: "Delete", entityEnroll: "Enroll",
		entityUnenroll: "Unenroll", entityDisable: "Disable", entityActivate: "Activate",
	}},
}

// rule says what a type of events becomes. What depends on the event itself is in body.
type rule struct {
	class     classID
	activity  int
	severity  int
	operation string // of the API, where there is no decision that names it
	message   string
}

// erasedRule is that of what takes the place of an erased event, whatever it was.
var erasedRule = rule{apiActivity, activityOther, informational, erasedCode, "an event that was erased before it was written here"}

const erasedCode = "erased"

var rules = map[event.Type]rule{
	// What was asked, and what was decided.
	event.TypeSessionIssued:        {apiActivity, apiRead, informational, "deliver", "a secret was delivered"},
	event.TypeDecisionDenied:       {apiActivity, activityOther, low, "", "a call was not permitted"},
	event.TypeOperationPermitted:   {apiActivity, apiRead, informational, "", "an administrative read was permitted"},
	event.TypeRequestRefused:       {apiActivity, activityOther, medium, "", "a call was refused before any policy was asked"},
	event.TypeRefusalsCounted:      {apiActivity, activityOther, medium, "limit", "a limiter refused calls"},
	event.TypeInstanceBound:        {apiActivity, apiCreate, informational, "bind", "an instance key was bound to its principal"},
	event.TypeAttestationAppraised: {apiActivity, apiUpdate, informational, "attest", "a device was appraised"},
	event.TypeAttestationRefused:   {apiActivity, apiUpdate, medium, "attest", "evidence that is not authentic was refused"},
	event.TypeRoundOpened:          {apiActivity, apiCreate, informational, "deliver", "a delivery waits for approvals"},
	event.TypeShareIssued:          {apiActivity, apiRead, informational, "share.fetch", "a share was given to its holder"},
	event.TypeRoundApproved:        {apiActivity, apiUpdate, informational, "share.approve", "a round was approved"},
	event.TypeRoundRejected:        {apiActivity, apiUpdate, low, "share.reject", "a round was rejected"},
	event.TypeRoundClosed:          {apiActivity, apiDelete, informational, "share.close", "a round was closed by its requester"},
	event.TypeRoundExpired:         {apiActivity, apiDelete, informational, "share.expire", "a round ran out of time"},
	event.TypeSignalReceived:       {apiActivity, apiCreate, informational, "signal", "an external signal was accepted"},
	event.TypeSignalSettled:        {apiActivity, apiUpdate, informational, "signal", "the sessions that a signal names were judged"},
	event.TypeSignalRefused:        {apiActivity, apiCreate, medium, "signal", "an external signal was not believed"},

	// What was done with a secret.
	event.TypeSessionConfirmed: {datastoreActivity, dataRead, informational, "open", "an envelope was opened"},
	event.TypeSessionUsed:      {datastoreActivity, dataRead, informational, "use", "a use of a gated secret was released"},
	event.TypeSessionOperated:  {datastoreActivity, activityOther, informational, "operate", "the broker worked with a key"},

	// What was changed, and what ended.
	event.TypeGenesis:             {entityManagement, entityCreate, informational, "", "a ledger was begun"},
	event.TypeRestored:            {entityManagement, entityUpdate, high, "", "a ledger was restored from a backup"},
	event.TypeKeyIntroduced:       {entityManagement, entityCreate, informational, "", "a signing key was introduced"},
	event.TypeKeyRetired:          {entityManagement, entityDelete, informational, "", "a signing key was retired"},
	event.TypeRevisionActivated:   {entityManagement, entityActivate, low, "", "a policy revision was activated"},
	event.TypeRevisionSwept:       {entityManagement, entityUpdate, low, "", "the sessions from before a revision were judged again"},
	event.TypeRevisionStaged:      {entityManagement, entityCreate, low, "", "a policy revision was stored"},
	event.TypeRevisionProposed:    {entityManagement, entityUpdate, medium, "", "a policy revision waits for a second person"},
	event.TypeShadowStarted:       {entityManagement, entityUpdate, low, "", "a policy revision began to judge without effect"},
	event.TypeShadowDiffered:      {entityManagement, entityUpdate, informational, "", "a policy revision would have decided otherwise"},
	event.TypeShadowEnded:         {entityManagement, entityUpdate, low, "", "a policy revision ended judging without effect"},
	event.TypeTrustObserved:       {entityManagement, entityUpdate, informational, "", "the trust bundle of a domain was first seen"},
	event.TypeSecretPut:           {entityManagement, entityUpdate, informational, "", "a version of a secret was stored"},
	event.TypeDeviceEnrolled:      {entityManagement, entityEnroll, informational, "", "a device was enrolled"},
	event.TypeDeviceRevoked:       {entityManagement, entityUnenroll, medium, "", "a device was revoked"},
	event.TypeAttestationDemanded: {entityManagement, entityUpdate, informational, "", "a device has to attest afresh"},
	event.TypeSessionRevoked:      {entityManagement, entityDisable, low, "", "a session was revoked"},
	event.TypeSessionClosed:       {entityManagement, entityDelete, informational, "", "a session was closed by its holder"},
	event.TypeSessionsExpired:     {entityManagement, entityDelete, informational, "", "sessions ran out of time"},
	event.TypeSessionsUnconfirmed: {entityManagement, entityUpdate, low, "", "no receipt came in time for sessions"},
	event.TypeSessionsRevoked:     {entityManagement, entityDisable, low, "", "sessions were revoked"},
	event.TypeSessionsWiped:       {entityManagement, entityDelete, informational, "", "an instance holds nothing of sessions any more"},
	event.TypeRevocationOrdered:   {entityManagement, entityDisable, medium, "", "a revocation was ordered"},
	event.TypeSubjectErased:       {entityManagement, entityDelete, medium, "", "what the record says of a principal was erased"},
	event.TypeHoldPlaced:          {entityManagement, entityUpdate, medium, "", "a legal hold was placed"},
	event.TypeHoldReleased:        {entityManagement, entityUpdate, medium, "", "a legal hold was released"},
	event.TypeRevocationCompleted: {entityManagement, entityDisable, informational, "", "a revocation is complete"},
}
