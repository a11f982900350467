package ocsf

// object is an OCSF event of any of the three classes; what a class does not have stays out.
type object struct {
	ActivityName string         `json:"activity_name"`
	Activity     int            `json:"activity_id"`
	CategoryName string         `json:"category_name"`
	CategoryUID  int            `json:"category_uid"`
	ClassName    string         `json:"class_name"`
	ClassUID     int            `json:"class_uid"`
	TypeName     string         `json:"type_name"`
	TypeUID      int64          `json:"type_uid"`
	Severity     string         `json:"severity"`
	SeverityID   int            `json:"severity_id"`
	Status       string         `json:"status"`
	StatusID     int            `json:"status_id"`
	StatusCode   string         `json:"status_code,omitempty"`
	StatusDetail string         `json:"status_detail,omitempty"`
	Time         int64          `json:"time"` // milliseconds since 1970
	StartTime    int64          `json:"start_time,omitempty"`
	EndTime      int64          `json:"end_time,omitempty"`
	Count        uint64         `json:"count,omitempty"`
	Message      string         `json:"message"`
	Metadata     metadata       `json:"metadata"`
	Actor        *actor         `json:"actor"`
	Src          *endpoint      `json:"src_endpoint,omitempty"`
	API          *api           `json:"api,omitempty"`
	Resources    []resource     `json:"resources,omitempty"`
	Type         string         `json:"type,omitempty"`
	TypeID       *int           `json:"type_id,omitempty"`
	Database     *store         `json:"database,omitempty"`
	Databucket   *store         `json:"databucket,omitempty"`
	Entity       *entity        `json:"entity,omitempty"`
	Comment      string         `json:"comment,omitempty"`
	Unmapped     map[string]any `json:"unmapped,omitempty"`

	rule    rule
	subject string
	origin  string
	other   string // what is done, where the class has no word for it
}

type metadata struct {
	Version        string  `json:"version"`
	Product        product `json:"product"`
	UID            string  `json:"uid"`
	Sequence       int64   `json:"sequence"`
	EventCode      string  `json:"event_code"`
	CorrelationUID string  `json:"correlation_uid,omitempty"`
	LogName        string  `json:"log_name"`
	LogProvider    string  `json:"log_provider"`
	LogVersion     string  `json:"log_version"`
	OriginalTime   string  `json:"original_time"`
}

type product struct {
	Name       string `json:"name"`
	VendorName string `json:"vendor_name"`
}

type actor struct {
	User           *user           `json:"user,omitempty"`
	Session        *session        `json:"session,omitempty"`
	Authorizations []authorization `json:"authorizations,omitempty"`
	AppName        string          `json:"app_name,omitempty"`
	AppUID         string          `json:"app_uid,omitempty"`
}

type user struct {
	UID       string `json:"uid"`
	Domain    string `json:"domain,omitempty"`
	Type      string `json:"type,omitempty"`
	TypeID    *int   `json:"type_id,omitempty"`
	RiskScore *int   `json:"risk_score,omitempty"`
}

type session struct {
	UID            string `json:"uid"`
	Issuer         string `json:"issuer,omitempty"`
	ExpirationTime int64  `json:"expiration_time,omitempty"`
}

type authorization struct {
	Decision string  `json:"decision"`
	Policy   *policy `json:"policy,omitempty"`
}

type policy struct {
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid"`
	Version   string `json:"version,omitempty"`
	IsApplied bool   `json:"is_applied,omitempty"`
}

type endpoint struct {
	Name        string    `json:"name,omitempty"`
	UID         string    `json:"uid,omitempty"`
	InstanceUID string    `json:"instance_uid,omitempty"`
	IP          string    `json:"ip,omitempty"`
	Port        uint16    `json:"port,omitempty"`
	Location    *location `json:"location,omitempty"`
}

type location struct {
	Country   string `json:"country"`
	Continent string `json:"continent,omitempty"`
}

type api struct {
	Operation string    `json:"operation"`
	Request   *request  `json:"request,omitempty"`
	Response  *response `json:"response,omitempty"`
	Service   *service  `json:"service"`
}

type request struct {
	UID string `json:"uid"`
}

type response struct {
	Error string `json:"error"`
}

type service struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

type resource struct {
	Name        string `json:"name,omitempty"`
	UID         string `json:"uid,omitempty"`
	Type        string `json:"type"`
	Version     string `json:"version,omitempty"`
	Criticality string `json:"criticality,omitempty"`
}

// store is a database or a databucket.
type store struct {
	Name   string `json:"name"`
	UID    string `json:"uid"`
	Type   string `json:"type"`
	TypeID int    `json:"type_id"`
}

type entity struct {
	Name    string  `json:"name,omitempty"`
	UID     string  `json:"uid,omitempty"`
	Type    string  `json:"type"`
	TypeID  int     `json:"type_id"`
	Version string  `json:"version,omitempty"`
	Policy  *policy `json:"policy,omitempty"`
	Device  *device `json:"device,omitempty"`
	Data    any     `json:"data,omitempty"`
}

type device struct {
	UID    string `json:"uid"`
	Type   string `json:"type"`
	TypeID int    `json:"type_id"`
}
