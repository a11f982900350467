package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"

	"github.com/gaissmai/bart"
)

// ZoneUnknown is the zone of every peer that no range covers.
const ZoneUnknown = "unknown"

var zoneName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}$`)

type zonesFile struct {
	Version int `yaml:"version"`
	Zones   []struct {
		Name  string   `yaml:"name"`
		CIDRs []string `yaml:"cidrs"`
	} `yaml:"zones"`
}

// zones finds the zone of an address by the longest prefix.
type zones struct {
	table *bart.Table[string]
	names []string
}

// parseZones refuses names that are malformed or given twice, ranges with bits behind the prefix, and
// ranges that two zones claim.
func parseZones(text []byte) (zones, error) {
	var file zonesFile
	if err := strictYAML(text, &file); err != nil {
		return zones{}, err
	}
	z := zones{table: new(bart.Table[string])}
	var faults []error
	if file.Version != 1 {
		faults = append(faults, fmt.Errorf("version is %d, want 1", file.Version))
	}
	seen := map[string]bool{ZoneUnknown: true}
	for _, zone := range file.Zones {
		if !zoneName.MatchString(zone.Name) || seen[zone.Name] {
			faults = append(faults, fmt.Errorf("zone %q: the name is malformed, reserved or there twice", zone.Name))
			continue
		}
		seen[zone.Name] = true
		z.names = append(z.names, zone.Name)
		for _, text := range zone.CIDRs {
			p, err := netip.ParsePrefix(text)
			if err != nil || p.Masked() != p || p.Addr().Is4In6() {
				faults = append(faults, fmt.Errorf("zone %q: %q is not a CIDR range in canonical form", zone.Name, text))
				continue
			}
			if owner, ok := z.table.Get(p); ok {
				faults = append(faults, fmt.Errorf("zone %q: range %s is already in zone %q", zone.Name, p, owner))
				continue
			}
			z.table.Insert(p, zone.Name)
		}
	}
	return z, errors.Join(faults...)
}

// find returns the address without the port, and its zone. What is not an address with a port (a Unix
// socket) has no address and the unknown zone.
func (z zones) find(peer string) (addr, zone string) {
	ap, err := netip.ParseAddrPort(peer)
	if err != nil {
		return "", ZoneUnknown
	}
	ip := ap.Addr().Unmap().WithZone("")
	if name, ok := z.table.Lookup(ip); ok {
		return ip.String(), name
	}
	return ip.String(), ZoneUnknown
}
