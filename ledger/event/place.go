package event

// Place is where a connection came from, as a database of places said of its address.
type Place struct {
	Country string `json:"country"` // ISO 3166-1 alpha-2
	Point   *Point `json:"point,omitempty"`
}

// Point is a position in thousandths of a degree, and how exact it is.
type Point struct {
	LatitudeMilli  int64 `json:"latitude_milli"`
	LongitudeMilli int64 `json:"longitude_milli"`
	RadiusKM       int64 `json:"radius_km"`
}
